"""From a GGUF file, or a folder without tokenizer.json, to a model folder.

`python -m app.checkpoint.convert SOURCE FOLDER SAMPLING` is run once, in a process of its own. SAMPLING is JSON: what
generation_config.json says if a GGUF file recommends nothing. Each line on stdout says what it is doing. If the source
cannot be converted, the exit code is 1 and the last line says why.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from ..core.parent import when_parent_ends
from ..errors import text_of
from .folder import GGUF_FILE, SOURCE_TOKENIZER, ModelFolder
from .gguf.by_name import tensors_by_name
from .gguf.config import model_config, other_config
from .gguf.file import GgufFile, parts_of
from .gguf.tensors import StoredTensor, decoder_tensors, split
from .gguf.tokenizer import GgufTokenizer
from .own_tokenizer import OwnTokenizer, own_tokenizer

_STORED_DTYPES = {0: "float32", 1: "float16"}
"""`general.file_type` of files that are not quantized. Weights of all others become bfloat16, which has more bits than
they have in the file, and is what hardware computes fastest with."""

_AS_STORED = {"mixtral": (".mlp.", ".block_sparse_moe.")}
"""By type of model: a part of the names of transformers' modules, and what checkpoints have in its place. transformers
reads both, and the decoder what checkpoints have."""

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Names of sampling parameters in GGUF files, by gguf.Keys.General, and in generation_config.json."""


def convert(source: Path, target: Path, sampling: Mapping[str, float] = MappingProxyType({})) -> None:
    """Write a folder with config, weights and tokenizer. `target` is complete as soon as it exists. `sampling` are the
    defaults of requests if a GGUF file recommends none.

    If several processes ask for the same folder, one converts and the others wait for it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        _say("another process does so already, which is waited for")
        held = lock.acquire()
    with held:
        if not target.is_dir():
            _write_at_once(source, target, sampling)


def _write_at_once(source: Path, target: Path, sampling: Mapping[str, float]) -> None:
    prefix = f".{target.name}-"
    for entry in target.parent.iterdir():
        if entry.name.startswith(prefix):  # a conversion that was killed has left it
            shutil.rmtree(entry)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _write_beside(source, temporary) if source.is_dir() else _write(source, temporary, sampling)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        temporary.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_beside(source: Path, folder: Path) -> None:
    """Write tokenizer.json beside links to all files of a folder that has none."""
    for file in source.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    tokenizer = own_tokenizer(ModelFolder(source)) or _tokenizer_of_class(source)
    tokenizer.fast.save(str(folder / "tokenizer.json"))
    if tokenizer.source is not None:
        tokenizer.source.save(str(folder / SOURCE_TOKENIZER))
    if not (source / "tokenizer_config.json").exists():
        _write_json(folder / "tokenizer_config.json", tokenizer.config)


def _tokenizer_of_class(folder: Path) -> OwnTokenizer:
    """The tokenizer that transformers makes."""
    from transformers import AutoTokenizer  # which takes a second

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library's, of many kinds
        raise ValueError(f"transformers makes no tokenizer of it: {text_of(error)}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(f"{type(tokenizer).__name__} cannot be written as tokenizer.json")
    return OwnTokenizer(tokenizer.backend_tokenizer, {})


def _write(gguf: Path, folder: Path, sampling: Mapping[str, float]) -> None:
    """Write the files of a model folder for a GGUF file."""
    file = GgufFile(gguf)
    tokenizer = GgufTokenizer(file)
    tokenizer.fast.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer.config())
    sampling = _recommended_sampling(file) or sampling
    _write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.end_ids(), **sampling})
    config = model_config(file)
    tensors = decoder_tensors(file, config) if config else f"the decoder does not run {file.architecture}"
    if config and isinstance(tensors, dict):
        _link(file, config, tensors, folder)
        return
    size = sum(part.stat().st_size for part in parts_of(file.path))
    _say(f"[1/3] loading transformers for {size / 2**20:.0f} MiB of weights: {tensors}")
    if config:
        _convert_by_name(file, config, folder)
    else:
        _convert_weights(file, folder)


def _recommended_sampling(file: GgufFile) -> dict[str, Any]:
    stored = {name: file.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    return {name: value for name, value in stored.items() if value is not None}


def _link(file: GgufFile, config: dict[str, Any], tensors: dict[str, StoredTensor], folder: Path) -> None:
    """Write a folder whose weights are those in the file, and which says where they lie."""
    _refuse_unread(file, config["model_type"])
    parts = split(tensors)
    is_tied = config["tie_word_embeddings"] and "lm_head" not in parts["blocks"]
    quantization = {"quant_method": "gguf"} | parts
    own = {"dtype": _dtype(file), "tie_word_embeddings": is_tied, "quantization_config": quantization}
    _write_json(folder / "config.json", config | own)
    (folder / GGUF_FILE).symlink_to(file.path.absolute())


def _dtype(file: GgufFile) -> str:
    return _STORED_DTYPES.get(file.get("general.file_type", -1), "bfloat16")


def _refuse_unread(file: GgufFile, kind: str, is_read: Callable[[str], bool] = lambda _name: False) -> None:
    if unread := file.unread(is_read):
        raise ValueError(f"the file says what {kind} models here do not know: {', '.join(unread[:5])}")


def _convert_weights(file: GgufFile, folder: Path) -> None:
    """Read the weights of a family that only transformers knows, and write them as plain numbers."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    _say("[2/3] converting the weights")
    dtype = getattr(torch, _dtype(file))
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    config = other_config(file, AutoConfig.from_pretrained(**source).to_dict(), _keys(file))
    shape = AutoConfig.for_model(**config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **source, config=shape, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, info = loaded
    names = _tensors_of(model, file, config)
    _refuse_made_up(info, {ours: theirs for theirs, ours in names.items()})
    _refuse_unread(file, config["model_type"], names.__contains__)
    _refuse_other_rotation(model, config)

    _say("[3/3] writing the weights")
    # model.save_pretrained refuses models from GGUF files, although their weights are plain tensors by now.
    save_file(_unique_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config | {"dtype": _dtype(file), "architectures": [type(model).__name__]})


def transformers_reads(file: GgufFile) -> bool:
    """Whether transformers can read a file: of some families, and not in parts."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    return file.architecture.replace("-", "_") in GGUF_CONFIG_MAPPING and len(parts_of(file.path)) == 1


def _convert_by_name(file: GgufFile, config: dict[str, Any], folder: Path) -> None:
    """Read the weights of a family of the table, and write them as plain numbers."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    _say("[2/3] converting the weights")
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(**config))
    _refuse_other_rotation(model, config)
    dtype, saved = getattr(torch, _dtype(file)), model.state_dict()
    parameters = dict(model.named_parameters())  # of which tied ones are there once
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    shapes = {name: tuple(tensor.shape) for name, tensor in (parameters | buffers).items()}
    own, as_stored = _AS_STORED.get(config["model_type"], ("", ""))
    weights = {
        name.replace(own, as_stored): torch.from_numpy(numbers.copy()).to(dtype)
        for name, numbers in tensors_by_name(file, config, shapes)
    }
    _refuse_unread(file, config["model_type"])

    _say("[3/3] writing the weights")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config | {"dtype": _dtype(file)})


def _refuse_other_rotation(model: Any, config: dict[str, Any]) -> None:
    """ValueError if a part of each head's dimensions is to be rotated, and the model's class rotates all of them."""
    if (factor := (config.get("rope_parameters") or {}).get("partial_rotary_factor")) is None:
        return
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = {2 * len(buffer) for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    if rotated - {int(head_dim * factor)}:
        raise ValueError(f"rope.dimension_count: {config['model_type']} models here rotate {max(rotated)} dimensions")


def _keys(file: GgufFile) -> list[str]:
    """The keys of a family that transformers reads, without the family's name."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    families: dict[str, Any] = GGUF_CONFIG_MAPPING
    known = families.get(file.architecture.replace("-", "_"), {})
    return [key for key, field in known.items() if field is not None]


def _refuse_made_up(info: dict[str, Any], names: dict[str, str]) -> None:
    """ValueError for what transformers has filled with random numbers. `names`: of the file, by transformers' own."""
    if missing := sorted(names.get(name, name) for name in info["missing_keys"]):
        raise ValueError(f"the file lacks {len(missing)} tensors of the model, {missing[0]} for one")
    for name, stored, shape in info["mismatched_keys"]:
        raise ValueError(f"{names.get(name, name)} has shape {tuple(stored)}, not {tuple(shape)}")


def _tensors_of(model: Any, file: GgufFile, config: dict[str, Any]) -> dict[str, str]:
    """The names of the tensors that transformers reads from such a file, and its own for them."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind: Any = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)
    processor = kind(config=config)
    names: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    return names


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _unique_tensors(model: Any) -> dict[str, Any]:
    """The model's tensors. One with several names appears under the first, which is that of the input embedding."""
    tensors: dict[str, Any] = {}
    addresses: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in addresses:
            addresses.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    return tensors


def _say(text: str) -> None:
    print(text, flush=True)


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
    os.environ["TQDM_DISABLE"] = "1"  # who has started this tells how far it is
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # one line, whatever is wrong with the file or the disk
        print(" ".join(str(error).split())[:500] or type(error).__name__)
        sys.exit(1)
