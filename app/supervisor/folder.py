"""The folder that the processes of one service share. It holds the engine's socket and shared memory."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "paceline-"


class PrivateFolder:
    """A folder that only this user may enter, because whoever reaches the socket controls the engine.

    Its owner holds a lock on it for as long as it lives, however it ends. A service that was killed together with all
    of its children leaves its folder behind, without a lock; the next service that starts removes it.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.path / "unlocked", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "unlocked").rename(self.path / "lock")  # so a file of this name always has an owner

    def remove(self) -> None:
        """Remove the folder, which must not be used any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep() -> None:
    """Remove the folders of services that are gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with suppress(OSError):  # the folder has an owner, or belongs to another user
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
            finally:
                os.close(descriptor)
