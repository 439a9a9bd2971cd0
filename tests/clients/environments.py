"""Throw-away environments for programs of others, made at first use and kept until what they are made of changes."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".clients"
INSTALL_SECONDS = 900


def python_client(name: str, with_torch: bool = False, script: str = "check.py") -> list[str]:
    """The command that runs a client's script in the environment of its requirements.txt."""
    python = python_environment(name, HERE / name / "requirements.txt", with_torch)
    return [str(python), str(HERE / name / script)]


def python_environment(name: str, requirements: Path, with_torch: bool = False) -> Path:
    """An environment's Python; `with_torch` shows it Paceline's own packages behind its own ones."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not _is_made(folder, requirements):
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        if with_torch:
            (packages_of(name) / "paceline.pth").write_text(sysconfig.get_path("purelib"))
        # All is pinned, and nothing else may come: torch's dependencies are several GB.
        _run(str(python), "-m", "pip", "install", "--no-deps", "--requirement", str(requirements))
        _say_made(folder, requirements)
    return python


def packages_of(name: str) -> Path:
    """Where the packages of a Python client are."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(CACHE / name)}))


def source_of(name: str, version: str) -> Path:
    """The folder with a package's source, of which its wheel has only a part."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as download:
            options = ("--no-deps", "--no-binary", name, "--dest", download)
            _run(sys.executable, "-m", "pip", "download", *options, f"{name}=={version}")
            (archive,) = Path(download).iterdir()
            with tarfile.open(archive) as opened:
                opened.extractall(download, filter="data")
            CACHE.mkdir(exist_ok=True)
            shutil.move(f"{download}/{folder.name}", folder)
    return folder


def node_client(name: str) -> list[str]:
    """The command that runs a client's check.mjs, which has to lie beside its node_modules."""
    folder = node_environment(name)
    shutil.copy(HERE / name / "check.mjs", folder)
    return ["node", str(folder / "check.mjs")]


def node_environment(name: str) -> Path:
    """A folder with the node_modules of a client's package-lock.json."""
    folder, lock = CACHE / name, HERE / name / "package-lock.json"
    if not _is_made(folder, lock):
        folder.mkdir(parents=True, exist_ok=True)
        for file in (lock, lock.with_name("package.json")):
            shutil.copy(file, folder)
        _run("npm", "ci", "--prefix", str(folder))
        _say_made(folder, lock)
    return folder


def _is_made(folder: Path, of: Path) -> bool:
    stamp = folder / "made-of"
    return stamp.exists() and stamp.read_text() == of.read_text()


def _say_made(folder: Path, of: Path) -> None:
    (folder / "made-of").write_text(of.read_text())


def _run(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return run.stdout
