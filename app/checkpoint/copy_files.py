"""Copies what a model folder has beside its weights into the folder of a model that is made of it."""

import shutil
from pathlib import Path

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.index.json", "config.json")
"""Files that are not copied: weights, in whatever form, and what is written anew."""


def copy_beside_weights(source: Path, out: Path) -> None:
    """Copy all but weights and config.json, such as the tokenizer."""
    for file in source.iterdir():
        is_left_out = file.name.startswith(".") or any(file.match(pattern) for pattern in _NOT_COPIED)
        if file.is_file() and not is_left_out:
            shutil.copyfile(file, out / file.name)
    if (templates := source / "additional_chat_templates").is_dir():
        shutil.copytree(templates, out / templates.name, dirs_exist_ok=True)
