"""The spectrogram of a sound while its windows become text, one after the other."""

from collections import deque
from itertools import islice

import numpy as np

from .features import FRAMES_OF_A_SECOND, Floats

_PART_FRAMES = 30 * FRAMES_OF_A_SECOND


class Sound:
    """A sound that was read, as far as it is still needed: an hour of it is more than a hundred megabytes."""

    def __init__(self, mel: Floats, num_frames: int) -> None:
        """`mel`: its spectrogram (bands, frames), of which `num_frames` are the sound, and what follows is silence."""
        starts = range(0, mel.shape[1], _PART_FRAMES)
        self._parts = deque(mel[:, start : start + _PART_FRAMES].copy() for start in starts)
        """(bands, frames): one behind the other, each in memory of its own."""
        self._begin = 0
        """The first frame of the first part."""
        self._window_bytes = 0
        self.num_frames = num_frames

    @property
    def num_bytes(self) -> int:
        """Of the parts that are left, and of the last window, which its reader keeps."""
        return self._window_bytes + sum(part.nbytes for part in self._parts)

    def window(self, begin: int, length: int) -> Floats:
        """(bands, length): the frames from `begin`, with zeros behind the last. Those before it are given up."""
        while self._parts and self._begin + self._parts[0].shape[1] <= begin:
            self._begin += self._parts.popleft().shape[1]
        first = begin - self._begin
        parts = islice(self._parts, -(-(first + length) // _PART_FRAMES))
        mel = np.concatenate(list(parts), axis=1)[:, first : first + length]
        padded = np.pad(mel, ((0, 0), (0, length - mel.shape[1])))
        self._window_bytes = padded.nbytes
        return padded
