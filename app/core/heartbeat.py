"""What an engine leaves behind in a file, so that others can tell a busy engine from one that hangs or has died.

A few bytes of shared memory beside the engine's socket: to write them costs the step loop nothing, and unlike a message
they can be read when the engine has no breath left to answer.
"""

import mmap
import struct
import time
from pathlib import Path

_TIMES = struct.Struct("=dQ")  # busy since, steps
_SUSPECT = struct.Struct("=H")  # length of the id that follows
_SIZE = 512


class Heartbeat:
    """The engine writes it, supervisor and API workers read it."""

    def __init__(self, address: str) -> None:
        """`address`: of the engine's socket. The file is made if it is not there."""
        file = Path(address.removeprefix("ipc://")).with_name("heartbeat")
        with file.open("a+b") as opened:
            opened.truncate(_SIZE)
            self._memory = mmap.mmap(opened.fileno(), _SIZE)

    def beat(self, suspect: str = "") -> None:
        """A step begins. `suspect`: the request that has it for itself, because it may end the engine."""
        self._write(time.monotonic(), self.num_steps + 1, suspect.encode())

    def rest(self) -> None:
        """There is nothing to do, or not yet."""
        self._write(0.0, self.num_steps, b"")

    def _write(self, began: float, num_steps: int, suspect: bytes) -> None:
        _SUSPECT.pack_into(self._memory, _TIMES.size, len(suspect))
        start = _TIMES.size + _SUSPECT.size
        self._memory[start : start + len(suspect)] = suspect
        _TIMES.pack_into(self._memory, 0, began, num_steps)

    @property
    def seconds_in_step(self) -> float:
        """How long the step has been running; 0 between steps."""
        (began, _) = _TIMES.unpack_from(self._memory)
        return time.monotonic() - began if began else 0.0

    @property
    def num_steps(self) -> int:
        """Steps begun, of all engines that wrote this."""
        return int(_TIMES.unpack_from(self._memory)[1])

    @property
    def suspect(self) -> str:
        """The request that has, or had, the last step for itself; empty if there was none."""
        (length,) = _SUSPECT.unpack_from(self._memory, _TIMES.size)
        start = _TIMES.size + _SUSPECT.size
        return bytes(self._memory[start : start + length]).decode()
