"""Whether one of several models is awake: what API workers and the supervisor leave for each other beside its socket.

API workers say when the model was wanted last, which costs them a write to shared memory. The supervisor starts the
engine then, ends it when nobody has wanted it for a time, and says which of both it has done.
"""

import time
from pathlib import Path
from typing import Literal

from .heartbeat import Heartbeat

State = Literal["awake", "asleep", "failed"]


class Lifecycle:
    """One model's, by the address of its engine's socket."""

    def __init__(self, address: str) -> None:
        self._wanted = Heartbeat(address, "wanted")
        self._file = Path(address.removeprefix("ipc://")).with_name("state")

    def want(self) -> None:
        """The model has something to do, or is about to have."""
        self._wanted.beat()

    @property
    def seconds_unwanted(self) -> float:
        """Since `want` was last called; without an end if it never was."""
        return self._wanted.seconds_silent if self._wanted.has_begun else float("inf")

    def set(self, state: State, why: str = "", failures: int = 0) -> None:
        """Tell all processes of a change; `why` a model has failed, for people, and how often in a row."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{state} {failures} {time.monotonic()} {why}")
        new.rename(self._file)

    @property
    def state(self) -> State:
        """As it was told last."""
        state = self._read()[0]
        return "failed" if state == "failed" else "awake" if state == "awake" else "asleep"

    @property
    def reason(self) -> str:
        """Why the model has failed; empty if it has not."""
        state, _, _, why = self._read()
        return why if state == "failed" else ""

    def seconds_to_pause(self, longest: float) -> float:
        """Until a model that has failed is to be tried again; 0 for others."""
        state, failures, failed_at, _ = self._read()
        if state != "failed":
            return 0.0
        return max(0.0, float(failed_at) + pause_after(int(failures), longest) - time.monotonic())

    def _read(self) -> list[str]:
        return self._file.read_text().split(" ", 3) if self._file.exists() else ["", "0", "0", ""]


def pause_after(failures: int, longest: float) -> float:
    """Seconds before a model is tried again that has failed so often in a row: 1, then twice as long each time."""
    pause: int = 2 ** (failures - 1)
    return min(longest, pause)
