"""Says on stderr how far something is that takes long, in one line."""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_FRAME_SECONDS = 0.2
"""Between two looks of a line that changes."""
_LINE_SECONDS = 10.0
"""Between two lines of a log."""
_CLEAR = "\r\x1b[2K"
"""Escape sequence (ECMA-48): back to the beginning of the line, which becomes empty."""


@contextmanager
def told(text: Callable[[float], str]) -> Iterator[Callable[[], None]]:
    """Say at once, now and then, and at the end what `text` says after so many seconds. Yields what says it in between.

    On a terminal it is a line that changes, else a line every ten seconds: of the log, where there is one.
    `text` is called in a thread of its own.
    """
    begin, is_over = time.monotonic(), threading.Event()
    is_seen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    show, pause = (_show, _FRAME_SECONDS) if is_seen else (_write, _LINE_SECONDS)

    def tell() -> None:
        show(text(time.monotonic() - begin))

    def keep_telling() -> None:
        while not is_over.wait(pause):
            tell()

    tell()
    thread = threading.Thread(target=keep_telling, name="progress", daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        is_over.set()
        thread.join()
        if is_seen or sys.exception() is None:  # a log tells of what has failed by itself
            tell()
        if is_seen:
            print(file=sys.stderr, flush=True)


def _show(line: str) -> None:
    print(_CLEAR + line[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)


def _write(line: str) -> None:
    if log.hasHandlers():
        log.info("%s", line)
    else:  # a command that keeps no log
        print(line, file=sys.stderr, flush=True)
