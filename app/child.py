"""What the supervisor's child processes have in common.

A child reads its settings as one line of JSON from stdin. Nothing else is ever written there: the end of stdin means
that the parent is gone, however it ended.
"""

import os
import sys
import threading
from collections.abc import Callable

from app.settings import Settings

_STDIN = 0


def read_settings() -> Settings:
    """The settings that the parent has written."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(_STDIN, 65536)
        if not piece:
            sys.exit("the parent process ended")
        line += piece
    # Nobody else reads there: a library that asks a question gets an end of file, not the parent's silence.
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    return Settings.model_validate_json(line)


def when_parent_ends(action: Callable[[], None]) -> None:
    """Call something, in a thread, once the parent is gone."""

    def watch() -> None:
        while os.read(_STDIN, 1):
            pass
        action()

    threading.Thread(target=watch, daemon=True).start()
