"""Configuration of all tests: which of them are quick, the embedded model, and the log."""

import gc
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from app.checkpoint.source import find_model
from app.errors import ModelError
from app.setting_sources import ENV_PREFIX
from app.settings import cache_folder

# A shell that runs the tests in the background has them ignore Ctrl-C, and with them all programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis must not fail a property because the machine is slow.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

TESTS = Path(__file__).parent
SLOW_FOLDERS = {
    "attention", "checkpoint", "clients", "deploy", "distill", "kernels", "layers", "llm", "models", "page",
    "security", "server", "terminal", "worker",
}  # fmt: skip
"""Folders whose tests import torch or start processes. Such tests elsewhere are marked one by one."""

LONGEST_FILES = [
    "deploy/test_nginx.py",
    "server/test_reliability.py",
    "server/test_pressure.py",
    "models/test_oracle.py",
    "server/test_starts.py",
    "page/test_chat.py",
    "kernels/test_compiled.py",
    "worker/test_gpu_runner.py",
    "server/test_service.py",
    "server/test_encoders.py",
    "server/test_image_models.py",
    "server/test_chaos.py",
    "server/test_forecasts.py",
    "models/test_drafts.py",
    "models/test_recurrent.py",
    "kernels/test_gpu.py",
]
"""They take 20 seconds to two minutes each, and run first. A file's tests stay in one process (`scripts/test`): when
two processes share the files, neither should begin a long one at the end, while the other has nothing left to do."""


def pytest_configure(config: pytest.Config) -> None:
    """Choose what torch and Triton read when they are imported.

    Two test processes share two cores, and tiny models gain nothing from a second thread: threads that wait for each
    other take the other process's time. What may go wrong between threads has tests with `two_threads`. Without a GPU,
    the GPU's kernels run in Triton's interpreter.
    """
    if config.option.markexpr != "clients":  # whose servers are alone, with the embedded model
        os.environ |= {"OMP_NUM_THREADS": "1", f"{ENV_PREFIX}CPU_THREADS": "1"}
    gc.disable()  # until all files are imported: it would look a dozen times at a million objects that stay
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of some hundred processes compiles the sources again
    if config.option.markexpr != "quick":
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave slow folders out of a quick run: importing their files takes longer than all quick tests."""
    is_slow = collection_path.parent == TESTS and collection_path.name in SLOW_FOLDERS
    return True if is_slow and config.option.markexpr == "quick" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test as either `slow` or `quick`, and sort them: the longest files first, quick tests last."""
    for item in items:
        in_slow_folder = item.path.relative_to(TESTS).parts[0] in SLOW_FOLDERS
        uses_model = "embedded_model" in getattr(item, "fixturenames", ())
        if in_slow_folder or uses_model or item.get_closest_marker("clients"):
            item.add_marker("slow")
        if not item.get_closest_marker("slow"):
            item.add_marker("quick")
    items.sort(key=_order)


def _order(item: pytest.Item) -> tuple[int, bool]:
    file = item.path.relative_to(TESTS).as_posix()
    rank = LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)
    return rank, item.get_closest_marker("quick") is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Convert the embedded model before the first test, so that no test has to wait for it.

    The result is kept in the cache folder. Of several test processes, one converts and the others wait.
    """
    gc.enable()
    if "triton" in sys.modules and "TRITON_INTERPRET" in os.environ:
        from tests.kernels.interpreter import make_faster

        make_faster()
    if not session.config.option.collectonly and any(item.get_closest_marker("slow") for item in session.items):
        with suppress(ModelError):  # the tests that need the model will report this
            find_model("embedded")


_quick_test = ""
"""The name of the quick test that runs now."""


def _refuse_processes(event: str, _arguments: object) -> None:
    if _quick_test and event in {"subprocess.Popen", "os.fork", "os.posix_spawn"}:
        raise AssertionError(f"{_quick_test} starts a process: mark it slow")


sys.addaudithook(_refuse_processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a quick test fail if it starts a process."""
    global _quick_test
    _quick_test = item.nodeid if item.get_closest_marker("quick") else ""
    try:
        return (yield)
    finally:
        _quick_test = ""


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded model's folder. Tests that use it are slow, because the first run has to convert it."""
    return find_model("embedded")


@pytest.fixture(scope="session")
def tiny_model(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the embedded model's tokenizer and chat template, for tests that any text serves.

    A token takes it about a millisecond, so what has to be running still while something else happens asks for
    thousands of tokens. Even its greedy output hardly repeats a token, so that equal answers mean something.
    """
    from tests.models.families import write_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    vocab_size = json.loads((embedded_model / "config.json").read_text())["vocab_size"]
    size = {"vocab_size": vocab_size, "num_hidden_layers": 2, "max_position_embeddings": 32768}
    write_checkpoint("Llama", size, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(embedded_model / name, folder)
    return folder


@pytest.fixture(scope="session")
def compiled_kernels() -> None:
    """Keep compiled CPU kernels in the cache folder, for tests that use them without a worker."""
    import torch

    from app.kernels.ops import keep_compiled

    keep_compiled(cache_folder(), torch.device("cpu"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Compute in two threads."""
    import torch

    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Undo what a test does to the root logger, because the stream that it logs to is closed after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
