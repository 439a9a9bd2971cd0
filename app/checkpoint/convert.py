"""GGUF to safetensors: `python -m app.checkpoint.convert FILE FOLDER`, run once per model in a process of its own.

Progress goes to stderr. If the file cannot be converted, the exit code is 1 and stdout says why, in one line.
"""

import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from app.core.parent import when_parent_ends

_STORED_DTYPES = {0: "float32", 1: "float16"}
"""`general.file_type` of files that are not quantized. Weights of all others become bfloat16, which has more bits than
they have in the file, and is what hardware computes fastest with."""
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Tokens with which chat templates end a turn. Not every file says that generation ends with them."""
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""`tokenizer.ggml.pre` of vocabularies in which each digit is a token. transformers takes them for GPT-2's, which
splits the white space before a number differently, such as before the items of a numbered list."""


def convert(gguf: Path, target: Path) -> None:
    """Write a folder with config, weights and tokenizer. `target` is complete as soon as it exists.

    If several processes ask for the same folder, one converts and the others wait for it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        _say(f"waiting for another process that is converting {gguf.name}")
        held = lock.acquire()
    with held:
        if not target.is_dir():
            _write_at_once(gguf, target)


def _write_at_once(gguf: Path, target: Path) -> None:
    prefix = f".{target.name}-"
    for entry in target.parent.iterdir():
        if entry.name.startswith(prefix):  # a conversion that was killed has left it
            shutil.rmtree(entry)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _write(gguf, temporary)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        temporary.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(gguf: Path, folder: Path) -> None:
    """Read a GGUF file through transformers, and write the files of a model folder."""
    _say(f"converting {gguf.name}, once: [1/4] loading transformers")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError as error:
        raise ValueError(f"it takes transformers 5.17 or a later 5.x; this is {__version__}") from error

    metadata: dict[str, Any] = read_gguf_metadata(str(gguf))[0]
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    _say("[2/4] converting the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        _split_digits(tokenizer)
    if (eos_token_id := metadata.get("tokenizer.ggml.eos_token_id")) is not None:
        # Some versions of transformers do not read it from the file, but have a default.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos_token_id)
    tokenizer.save_pretrained(folder)

    _say(f"[3/4] converting the weights ({gguf.stat().st_size / 2**20:.0f} MiB)")
    dtype = getattr(torch, _STORED_DTYPES.get(metadata.get("general.file_type", -1), "bfloat16"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers has filled them with random numbers
        raise ValueError(f"the file lacks {len(missing)} tensors of the model, {missing[0]} for one")

    _say("[4/4] writing")
    # model.save_pretrained refuses models from GGUF files, although their weights are plain tensors by now.
    save_file(_unique_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.eos_token_id = _end_tokens(tokenizer)
    model.generation_config.save_pretrained(folder)


def _unique_tensors(model: Any) -> dict[str, Any]:
    """The model's tensors. One with several names appears under the first, which is that of the input embedding."""
    tensors: dict[str, Any] = {}
    addresses: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in addresses:
            addresses.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    return tensors


def _split_digits(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split


def _end_tokens(tokenizer: Any) -> list[int]:
    """The end-of-sequence token, and the token with which the chat template ends a turn."""
    template = tokenizer.chat_template or ""
    names = {name for name in _TURN_ENDS if name in template and name in tokenizer.get_added_vocab()}
    ids = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(sorted(names))}
    return sorted(ids - {None})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    when_parent_ends(partial(os._exit, 1))  # the next conversion removes what this one has written
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # progress bars are for terminals; log files get the lines above
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # one line, whatever is wrong with the file or the disk
        print(" ".join(str(error).split())[:500] or type(error).__name__)
        sys.exit(1)
