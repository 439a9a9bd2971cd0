"""The folder that the processes of one service share: the engine's socket, and memory that others may read."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "paceline-"


class PrivateFolder:
    """One that only this user may enter: whoever reaches the socket commands the engine.

    It is locked for as long as its owner lives, however that ends. A service that was killed together with all of its
    children leaves its folder behind: the next one, which finds it without an owner, removes it.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.path / "unlocked", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "unlocked").rename(self.path / "lock")  # it is never seen by its name without an owner

    def remove(self) -> None:
        """Remove it; it must not be used any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep() -> None:
    """Remove what services that are gone have left."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with suppress(OSError):  # it has an owner, or is another user's
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
            finally:
                os.close(descriptor)
