"""How children that end are restarted or given up, with real processes."""

import queue
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import EXIT_STARTUP_ERROR
from app.supervisor import child as module
from app.supervisor.child import Child, ChildLostError, stop
from app.supervisor.serve import _stop_is_wanted, _watch
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY", 0.0)


class Starter:
    """Start processes that run a line of Python."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen([sys.executable, "-c", self.code], stdin=subprocess.PIPE))
        return self.started[-1]

    def wait(self) -> None:
        self.started[-1].wait()


def test_a_useful_child_is_started_again_for_ever(tmp_path: Path) -> None:
    start = Starter("raise SystemExit(1)")
    child = Child("it", start, max_restarts=0, folder=tmp_path)
    for count in range(2, 5):
        start.wait()
        assert child.restart_if_dead(was_useful=True)
        assert not child.restart_if_dead(was_useful=False)  # this starts the next one
        assert len(start.started) == count
    stop(child)


def test_a_useless_child_is_given_up(tmp_path: Path) -> None:
    start = Starter("raise SystemExit(7)")
    child = Child("it", start, max_restarts=2, folder=tmp_path)
    for _ in range(2):
        start.wait()
        child.restart_if_dead(was_useful=False)
        child.restart_if_dead(was_useful=False)
    start.wait()
    with pytest.raises(ChildLostError, match="it ended with exit code 7, 3 times in a row"):
        child.restart_if_dead(was_useful=False)
    assert len(start.started) == 3


def test_a_child_says_itself_why_it_cannot_start(tmp_path: Path) -> None:
    start = Starter(f"from app.core.parent import give_up; give_up('ipc://{tmp_path}/engine', 'the disk is gone')")
    child = Child("it", start, max_restarts=0, folder=tmp_path)
    start.wait()
    assert child.exit_code == EXIT_STARTUP_ERROR
    with pytest.raises(ChildLostError, match="it ended with exit code 2: the disk is gone, 1 times in a row"):
        child.restart_if_dead(was_useful=False)


def test_each_useless_start_waits_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY", 10.0)
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    start = Starter("pass")
    child = Child("it", start, max_restarts=9, folder=tmp_path)
    for delay in (10.0, 20.0, 30.0, 30.0):
        start.wait()
        died_at, count = clock[0], len(start.started)
        child.restart_if_dead(was_useful=False)
        clock[0] = died_at + delay - 0.1
        child.restart_if_dead(was_useful=False)
        assert len(start.started) == count
        clock[0] = died_at + delay
        child.restart_if_dead(was_useful=False)
        assert len(start.started) == count + 1
    stop(child)


@pytest.mark.parametrize(
    ("code", "patience", "result"),
    [("import sys; sys.stdin.read()", PATIENCE, 0), ("import time; time.sleep(100)", 0, -signal.SIGKILL)],
)
def test_stopping_ends_those_that_wait_for_their_stdin_and_kills_the_others(
    code: str, patience: float, result: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", patience)
    start = Starter(code)
    stop(Child("it", start, 0, tmp_path))
    assert start.started[0].returncode == result


@pytest.mark.parametrize(
    ("arrived", "wanted"),
    [
        ([signal.SIGCHLD], False),
        # A signal to the whole group ends a child as well: that is no failure, whichever is seen first.
        ([signal.SIGCHLD, signal.SIGTERM], True),
        ([signal.SIGINT, signal.SIGCHLD], True),
    ],
)
def test_a_stop_counts_more_than_a_child_that_ended(arrived: list[signal.Signals], wanted: bool) -> None:
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in arrived:
        signals.put(number)
    assert _stop_is_wanted(signals, []) == wanted


def test_a_lost_child_ends_the_watch() -> None:
    def lost() -> None:
        raise ChildLostError("gone", 7)

    engine: Any = SimpleNamespace(check=lost)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    signals.put(signal.SIGCHLD)
    with pytest.raises(ChildLostError):
        _watch(engine, [], signals)
