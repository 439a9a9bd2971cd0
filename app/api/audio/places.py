"""How much memory sounds take up in an API worker, and how many are read at once."""

import asyncio

from ...errors import QueueFullError
from ...speech.sound import Sound

_MOST_BYTES = 2**30
"""Of files that wait to be read, and of spectrograms: one is 115 to 184 MB where a sound is an hour long."""
_READ_AT_ONCE = 2


class SoundPlaces:
    """Places for sounds: one is taken before a sound is read, and given back when its text is complete."""

    def __init__(self) -> None:
        self._taken: set[SoundPlace] = set()
        self.reading = asyncio.Semaphore(_READ_AT_ONCE)
        """Held while a file is read."""

    def take(self, file: bytes) -> "SoundPlace":
        """A place with a file. Raises QueueFullError if there is no room."""
        self.check_room()
        place = SoundPlace(self, file)
        self._taken.add(place)
        return place

    def check_room(self) -> None:
        """Raise QueueFullError if sounds take up as much memory as they may: a spectrogram's size is known too late."""
        if sum(place.num_bytes for place in self._taken) >= _MOST_BYTES:
            raise QueueFullError("sounds of open requests take up too much memory; try again later")

    def give_back(self, place: "SoundPlace") -> None:
        """One is free again."""
        self._taken.discard(place)


class SoundPlace:
    """A place that was taken, and is given back once."""

    def __init__(self, places: SoundPlaces, file: bytes) -> None:
        self._places = places
        self.file = file
        """Until it has been read."""
        self.sound: Sound | None = None
        """From then on."""

    @property
    def num_bytes(self) -> int:
        return len(self.file) + (self.sound.num_bytes if self.sound else 0)

    def leave(self) -> None:
        """Give it back, unless that has happened."""
        self._places.give_back(self)
