"""GGUF to safetensors: `python -m app.hub.convert FILE FOLDER`, run once per model in a process of its own."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from filelock import FileLock
from rich.console import Console

_console = Console(stderr=True)


def convert(gguf: Path, target: Path) -> None:
    """Write a folder with config, weights and tokenizer, all at once: `target` is complete or does not exist.

    Several processes may ask for the same folder: one converts, the others wait for it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return
        for stale in target.parent.glob(f".{target.name}-*"):  # of a conversion that was killed
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(gguf, temporary)
            _sync(temporary)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with _console.status("importing transformers"):
        import torch
        from safetensors.torch import save_model
        from transformers import AutoModelForCausalLM, AutoTokenizer
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _console.status(f"reading the tokenizer of {gguf.name}"):
        tokenizer = AutoTokenizer.from_pretrained(**source)
        tokenizer.save_pretrained(folder)
    _console.print(f"reading the weights of {gguf.name}")
    # bfloat16 holds more than the few bits that a GGUF file gives a weight, and is what hardware is fastest at.
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with _console.status("writing safetensors"):
        # Not save_pretrained: it refuses what came from GGUF, although the weights are plain tensors now.
        save_model(model, str(folder / "model.safetensors"))
        config = model.config.to_dict() | {"architectures": [type(model).__name__]}
        for name in ("quantization_config", "_name_or_path"):
            config.pop(name, None)
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        model.generation_config.save_pretrained(folder)


def _sync(folder: Path) -> None:
    """Make sure that what the rename makes visible is on the disk."""
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # whatever is wrong with the file: one line says it
        sys.exit(f"{sys.argv[1]}: {error}")
