"""What a process that the supervisor starts does with its stdin: settings come in by it, and its end ends the process.

By the descriptor alone, and `sys.stdin` is empty: whoever else reads it, such as a library that asks a question, would
wait for ever, and hold a lock that the end of this process needs.
"""

import os
import sys
import threading
from collections.abc import Callable

from app.settings import Settings

_STDIN = 0


def read_settings() -> Settings:
    """The settings, which the parent writes as one line of JSON."""
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
