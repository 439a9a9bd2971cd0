"""A child process is tied to its parent by its stdin: settings arrive there, and when stdin is closed, the child ends.

Stdin is read by its descriptor only, and `sys.stdin` is replaced by an empty file. Otherwise a library that asks a
question would wait for ever, and hold a lock that this process needs in order to end.

The parent removes the folder that its processes share when it ends. If the parent was killed, its children remove it.

A child that cannot start leaves the reason in that folder, because the parent's word is the last in the log.
"""

import atexit
import ctypes
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..errors import EXIT_STARTUP_ERROR
from ..settings import Settings

_STDIN = 0
_PR_SET_PDEATHSIG = 1
"""See prctl(2) of Linux."""
_REMOVALS = 100
"""Other processes may still create files in the folder, but not for long, because they end as well."""


def read_settings(address: str) -> Settings:
    """Read the settings, which the parent writes as one line of JSON. `address` is the engine's socket."""
    atexit.register(partial(remove_if_orphan, address))
    _wake_when_parent_ends()
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(_STDIN, 65536)
        if not piece:
            sys.exit("the parent is gone")
        line += piece
    return Settings.model_validate_json(line)


def when_parent_ends(act: Callable[[], None]) -> None:
    """Call a function in a thread once the parent has closed its end of stdin or has ended."""

    def wait() -> None:
        while os.read(_STDIN, 65536):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def give_up(address: str, reason: str) -> NoReturn:
    """End this process because it cannot start. The parent finds the reason with `reason_of`."""
    _reason_file(_folder(address), os.getpid()).write_text(reason)
    sys.exit(EXIT_STARTUP_ERROR)


def reason_of(folder: Path, process_id: int) -> str:
    """Why a child could not start; empty if it did not say so."""
    file = _reason_file(folder, process_id)
    return file.read_text() if file.exists() else ""


def _reason_file(folder: Path, process_id: int) -> Path:
    return folder / f"{process_id}.reason"


def _folder(address: str) -> Path:
    """The folder that the processes share, which holds the engine's socket."""
    return Path(address.removeprefix("ipc://")).parent


def remove_if_orphan(address: str) -> None:
    """Remove the folder of the engine's socket if the parent has closed stdin or is gone."""
    folder = _folder(address)
    (has_something, _, _) = select.select([_STDIN], [], [], 0)
    if not has_something or os.read(_STDIN, 1):
        return
    for _ in range(_REMOVALS):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)


def _wake_when_parent_ends() -> None:
    """Have the system wake this process when its parent ends: a stopped process does not see that stdin is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
