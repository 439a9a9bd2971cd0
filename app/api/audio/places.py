"""How many sounds an API worker has in memory, and reads, at once."""

import asyncio

from ...errors import QueueFullError

_MOST = 32
"""Each may be a hundred megabytes, where it is an hour long."""

_READ_AT_ONCE = 2


class SoundPlaces:
    """Places for sounds: one is taken before a sound is read, and given back when its text is complete."""

    def __init__(self) -> None:
        self._num_taken = 0
        self.reading = asyncio.Semaphore(_READ_AT_ONCE)
        """Held while a file is read."""

    def take(self) -> "SoundPlace":
        """A place. Raises QueueFullError if all are taken."""
        if self._num_taken == _MOST:
            raise QueueFullError(f"{_MOST} sounds are open; try again later")
        self._num_taken += 1
        return SoundPlace(self)

    def give_back(self) -> None:
        """One is free again."""
        self._num_taken -= 1


class SoundPlace:
    """A place that was taken, and is given back once."""

    def __init__(self, places: SoundPlaces) -> None:
        self._places: SoundPlaces | None = places

    def leave(self) -> None:
        """Give it back, unless that has happened."""
        if self._places is not None:
            self._places.give_back()
            self._places = None
