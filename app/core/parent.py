"""What ties a child process to its parent: its stdin, by which its settings come and whose end is its own end.

Stdin is read by its descriptor alone, and `sys.stdin` is empty: a library that asks a question would otherwise wait
for ever, and hold a lock that the end of this process needs.

The parent removes the folder that its processes share when it ends. If the parent was killed, its children do.
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

from app.settings import Settings

_STDIN = 0
_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2)."""
_REMOVALS = 100
"""Others may be putting something into the folder, but not for long: they end as well."""


def read_settings(address: str) -> Settings:
    """The settings, which the parent writes as one line of JSON. `address`: of the engine's socket."""
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
    """Call a function, in a thread, once the parent closes its end of stdin, which its own end does too."""

    def wait() -> None:
        while os.read(_STDIN, 65536):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def remove_if_orphan(address: str) -> None:
    """Remove the folder of the engine's socket if the parent does not want this process any more, or is gone."""
    folder = Path(address.removeprefix("ipc://")).parent
    (has_something, _, _) = select.select([_STDIN], [], [], 0)
    if not has_something or os.read(_STDIN, 1):
        return
    for _ in range(_REMOVALS):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)


def _wake_when_parent_ends() -> None:
    """A process that was stopped does not see that its stdin is closed: have the system wake it then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
