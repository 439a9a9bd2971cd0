"""How the supervisor judges what ends."""

import queue
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from app.supervisor import _watch


def ended(code: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    process.wait()
    return process


@pytest.mark.parametrize(
    ("arrived", "code"),
    [
        ([signal.SIGCHLD], 1),
        # A signal to the whole group ends a child as well: that is no failure, whichever is seen first.
        ([signal.SIGCHLD, signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGCHLD], 0),
    ],
)
def test_a_stop_counts_more_than_a_child_that_ended(arrived: list[signal.Signals], code: int) -> None:
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in arrived:
        signals.put(number)
    engine: Any = SimpleNamespace(exit_code=None)
    assert _watch(engine, [ended(0)], signals) == code


@pytest.mark.parametrize(("exit_code", "code"), [(2, 2), (7, 7), (0, 2), (-9, 2)])
def test_an_engine_that_ends_before_it_was_ready_ends_the_service(exit_code: int, code: int) -> None:
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    signals.put(signal.SIGCHLD)
    engine: Any = SimpleNamespace(exit_code=exit_code, was_ready=False)
    api: Any = SimpleNamespace(poll=lambda: None)
    assert _watch(engine, [api], signals) == code
