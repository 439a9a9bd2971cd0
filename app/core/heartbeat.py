"""What a child process leaves in a file, so that others can tell one that is busy from one that hangs or has died.

A few bytes of shared memory beside the engine's socket: to write them costs a loop nothing, and unlike a message they
can be read when the process has no breath left to answer.
"""

import mmap
import struct
import time
from pathlib import Path

_TIME = struct.Struct("=d")  # the last sign of life; 0 before the first one
_STEPS = struct.Struct("=Q")
_ENGINES = struct.Struct("=Q")
_SUSPECT = struct.Struct("=H")  # length of the id that follows
_STEPS_AT = _TIME.size
_ENGINES_AT = _STEPS_AT + _STEPS.size
_SUSPECT_AT = _ENGINES_AT + _ENGINES.size
_SIZE = 512


class Heartbeat:
    """A process writes it whenever it goes on with its work or finds none; the supervisor and others read it."""

    def __init__(self, address: str, name: str) -> None:
        """`address`: of the engine's socket; `name`: of the process. The file is made if it is not there."""
        file = Path(address.removeprefix("ipc://")).with_name(f"{name}.heartbeat")
        with file.open("a+b") as opened:
            opened.truncate(_SIZE)
            self._memory = mmap.mmap(opened.fileno(), _SIZE)

    def beat(self) -> None:
        """The loop turns."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    def reset(self) -> None:
        """A process starts, which will take as long as it takes."""
        _TIME.pack_into(self._memory, 0, 0.0)

    @property
    def has_begun(self) -> bool:
        """Whether the process has started, and its loop turned."""
        return bool(_TIME.unpack_from(self._memory)[0])

    @property
    def seconds_silent(self) -> float:
        """Since the last sign of life; 0 while the process is starting."""
        (beaten_at,) = _TIME.unpack_from(self._memory)
        return time.monotonic() - beaten_at if beaten_at else 0.0


class EngineHeartbeat(Heartbeat):
    """The engine's: it says what the step loop does, too."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "engine")

    def begin(self) -> None:
        """The engine has started."""
        _ENGINES.pack_into(self._memory, _ENGINES_AT, self._num_engines + 1)
        self.rest()  # one that died may have left its last step

    def end(self) -> None:
        """The engine is being ended on purpose: who takes over later does not replace one that died."""
        _ENGINES.pack_into(self._memory, _ENGINES_AT, max(0, self._num_engines - 1))

    def begin_step(self, suspect: str = "") -> None:
        """A step begins. `suspect`: the request that has it for itself, because it may end the engine."""
        self._write_suspect(suspect.encode())
        self.beat()

    def end_step(self) -> None:
        """A step has ended, and something was computed in it."""
        _STEPS.pack_into(self._memory, _STEPS_AT, self.num_steps + 1)
        self.beat()

    def rest(self) -> None:
        """There is nothing to do, or not yet."""
        self._write_suspect(b"")
        self.beat()

    def _write_suspect(self, suspect: bytes) -> None:
        _SUSPECT.pack_into(self._memory, _SUSPECT_AT, len(suspect))
        start = _SUSPECT_AT + _SUSPECT.size
        self._memory[start : start + len(suspect)] = suspect

    @property
    def _num_engines(self) -> int:
        return int(_ENGINES.unpack_from(self._memory, _ENGINES_AT)[0])

    @property
    def num_restarts(self) -> int:
        """Times that an engine took over from one that died."""
        return max(0, self._num_engines - 1)

    @property
    def num_steps(self) -> int:
        """Steps that have ended, of all engines that wrote this."""
        return int(_STEPS.unpack_from(self._memory, _STEPS_AT)[0])

    @property
    def suspect(self) -> str:
        """The request that has, or had, the last step for itself; empty if there was none."""
        (length,) = _SUSPECT.unpack_from(self._memory, _SUSPECT_AT)
        start = _SUSPECT_AT + _SUSPECT.size
        return bytes(self._memory[start : start + length]).decode()
