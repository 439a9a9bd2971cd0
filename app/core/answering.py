"""How a process of our own answers questions about what strangers send: what `app.core.side_process` talks to.

Questions come on stdin and answers go to stdout, each behind its length; what libraries print goes to stderr. The
process ends when stdin is closed. Native code reads what may have been made to break it, so processor time and memory
are bounded: a question that needs more ends this process, and no other.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from .bounded import limit_memory

FRAME_BYTES = 4
"""Messages begin with their length."""
Asked = TypeVar("Asked", bound=msgspec.Struct)


class Ready(msgspec.Struct):
    """The process's first message."""

    error: str = ""
    """Why it can answer nothing; empty if it can."""


def framed(message: msgspec.Struct) -> bytes:
    """A message as it is sent."""
    encoded = msgspec.msgpack.encode(message)
    return len(encoded).to_bytes(FRAME_BYTES) + encoded


def take_stdout() -> int:
    """Where answers are to go from now on; what is printed goes to stderr. The process minds no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def send(message: msgspec.Struct, to: int) -> None:
    """Send a message."""
    left = memoryview(framed(message))
    while left:
        left = left[os.write(to, left) :]


def serve(
    ready: Ready,
    kind: type[Asked],
    answer: Callable[[Asked], msgspec.Struct],
    to: int,
    *,
    most_cpu_seconds: float,
    most_bytes: int,
) -> None:
    """Say what the process is, and answer questions of a kind until stdin is closed.

    most_cpu_seconds: processor time for one answer. most_bytes: memory beside what the process has now.
    """
    limit_memory(most_bytes)
    send(ready, to)
    while length := os.read(sys.stdin.fileno(), FRAME_BYTES):
        asked = msgspec.msgpack.decode(_read(int.from_bytes(length)), type=kind)
        signal.setitimer(signal.ITIMER_PROF, most_cpu_seconds)  # whose signal ends the process
        answered = answer(asked)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(answered, to)


def _read(length: int) -> bytes:
    message = bytearray()
    while len(message) < length and (piece := os.read(sys.stdin.fileno(), length - len(message))):
        message += piece
    return bytes(message)
