"""What a request brings along that is no text: an image, a sound, the input of an encoder, a series of numbers."""

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


class Media(msgspec.Struct, frozen=True):
    """One image, sound, or other input, prepared for the model that reads it."""

    digest: bytes
    """Of what a client gave and how it was prepared: media of equal digests are equal."""
    arrays: dict[str, Array]
    """Arguments of the part of the model that reads it, by name."""
    num_tokens: int
    """Places that it takes up where a decoder reads it: among its prompt's tokens, or in its cross-attention."""
