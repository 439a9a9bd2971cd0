"""The package as it is installed: it is called `paceline`, and other people's `app` stays theirs."""

from pathlib import Path

import httpx
import pytest

from tests.patience import PATIENCE
from tests.server.process import REPOSITORY, run, running_server


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation by pip, made from a copy, since building leaves files behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("app", "paceline_bench", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).symlink_to(REPOSITORY / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--target", str(target))
    code, _, log = run("-m", "pip", "install", *options, str(source))
    assert code == 0, log
    return target


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A project with an `app` of its own, which nobody but the project may import."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise ImportError('this is another app')\n")
    return tmp_path


def test_every_file_is_installed_and_no_other_name(installed: Path) -> None:
    assert _files(installed / "paceline") == _files(REPOSITORY / "app")
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"paceline", "paceline_bench", "bin"}


def _files(folder: Path) -> set[Path]:
    """All but what Python compiles."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_service_runs_beside_a_foreign_app(installed: Path, foreign: Path) -> None:
    path = f"{foreign}:{installed}"
    code, _, log = run("-P", "-c", "import app", PYTHONPATH=path)
    assert code
    assert "this is another app" in log
    code, output, _ = run("-P", "-c", "import paceline; print(paceline.__file__)", PYTHONPATH=path)
    assert (code, output.strip()) == (0, str(installed / "paceline" / "__init__.py"))
    command = (str(installed / "bin" / "paceline"), "serve", "--port", "0", "--max-model-len", "512")
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}
    with running_server(command=command, PYTHONPATH=path) as server:
        body = {
            "model": _model(server.url),
            "messages": [{"role": "user", "content": "Yes?"}],
            "response_format": schema,
        }
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert answer.json()["choices"][0]["message"]["content"] in ("true", "false")


def _model(url: str) -> str:
    name: str = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    return name


def test_the_measuring_command_stands_beside_it(installed: Path, foreign: Path) -> None:
    code, output, log = run(str(installed / "bin" / "paceline"), "bench", "--help", PYTHONPATH=f"{foreign}:{installed}")
    assert code == 0, log
    assert "Usage: paceline bench" in output
