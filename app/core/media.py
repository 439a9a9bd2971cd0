"""What a request brings along that is no text: an image, a sound, the input of an encoder, a series of numbers."""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Array(msgspec.Struct, frozen=True):
    """An array on its way between processes."""

    dtype: str
    """numpy's name of it."""
    shape: list[int]
    data: bytes
    """In C order."""

    @classmethod
    def of(cls, array: NDArray[Any]) -> "Array":
        """A copy of an array."""
        return cls(array.dtype.name, list(array.shape), array.tobytes())

    def numpy(self) -> NDArray[Any]:
        """The array, which cannot be written to."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class Media(msgspec.Struct, frozen=True, weakref=True):
    """One image, sound, or other input, prepared for the model that reads it."""

    digest: bytes
    """Of what a client gave and how it was prepared: media of equal digests are equal."""
    arrays: dict[str, Array]
    """Arguments of the part of the model that reads it, by name."""
    num_tokens: int
    """Places that it takes up where a decoder reads it: among its prompt's tokens, or in its cross-attention."""

    def numpy(self) -> dict[str, NDArray[Any]]:
        """The arrays, which cannot be written to."""
        return {name: array.numpy() for name, array in self.arrays.items()}


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Some of a medium's places, which lie side by side among the tokens of a prompt."""

    start: int
    """The first token."""
    count: int
    first: int
    """The medium's place that stands there."""

    @property
    def end(self) -> int:
        return self.start + self.count


class Placed(msgspec.Struct, frozen=True):
    """A medium that a decoder reads among its prompt's tokens."""

    runs: list[Run]
    """All of its places, in order. Between them stand tokens of text."""
    media: Media

    @property
    def end(self) -> int:
        """Where the prompt goes on behind it."""
        return self.runs[-1].end if self.runs else 0

    def overlaps(self, start: int, end: int) -> bool:
        """Whether some of the tokens from `start` to `end` may be its own: there may be a run for each of its rows,
        which need not be looked at otherwise."""
        return start < self.end and self.runs[0].start < end


def key_of(media: Sequence[Placed], start: int, end: int) -> bytes:
    """What stands in the place of the tokens from `start` to `end`, for hashes: empty for text alone."""
    near = (one for one in media if one.overlaps(start, end))
    runs = ((one.media.digest, run) for one in near for run in one.runs if run.start < end and start < run.end)
    return b"".join(digest + struct.pack("<qqq", *msgspec.structs.astuple(run)) for digest, run in runs)
