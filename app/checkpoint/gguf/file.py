"""Reads what a GGUF file says: its metadata and its table of tensors, without the tensors' data.

The format is described in the repository ggml-org/ggml. Everything that is read is remembered, so that the
caller can refuse what nobody has read.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letters of the metadata's types of numbers."""
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0
"""The type of tensors whose data are plain numbers."""
_DESCRIPTIONS = ("general.", "quantize.", "mradermacher.")
"""Beginnings of keys that only say where a file comes from."""


class TensorInfo(NamedTuple):
    """A tensor, as the file's table has it."""

    shape: tuple[int, ...]
    """In torch's order."""
    kind: int
    """ggml's number of the data type."""
    offset: int
    """Bytes from the beginning of the data."""


class GgufFile:
    """What a GGUF file says. Raises ValueError for a file that is broken or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: set[str] = set()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._size = len(content)
            try:
                reader = _Reader(content)
                self._metadata, self.tensors = reader.metadata, reader.tensors
            except (struct.error, KeyError, UnicodeDecodeError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path} is not a readable GGUF file: {error!r}") from error
        alignment = self.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        self._data_at = -(-reader.at // alignment) * alignment
        self.architecture = str(self.get("general.architecture"))
        """llama.cpp's name of the family."""

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        self._read.add(key)
        return self._metadata.get(key, default)

    def of_model(self, key: str, default: Any = None) -> Any:
        """A value under the family's name. A list of equal values, one for each layer, counts as this value."""
        value = self.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            return value[0]
        return value

    def all_of(self, prefix: str) -> dict[str, Any]:
        """All values whose keys begin with a prefix, by the rest of the key."""
        keys = [key for key in self._metadata if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.get(key) for key in keys}

    def numbers(self, name: str) -> list[float] | None:
        """The numbers of a small tensor; None if there is none of this name. ValueError if they are not float32."""
        if name not in self.tensors:
            return None
        info = self.tensors[name]
        if info.kind != _FLOAT32:
            raise ValueError(f"{name} is not of type F32")
        count = int(np.prod(info.shape))
        values: list[float] = np.fromfile(self.path, "<f4", count, offset=self.begin_of(name, 4 * count)).tolist()
        return values

    def begin_of(self, name: str, num_bytes: int) -> int:
        """The byte at which a tensor's data begin, for who reads them. ValueError if the file ends before their end."""
        self._read.add(name)
        begin: int = self._data_at + self.tensors[name].offset
        if begin + num_bytes > self._size:
            raise ValueError(f"the file ends within {name}")
        return begin

    def unread(self, tensors: Callable[[str], bool]) -> list[str]:
        """Keys and tensors that nobody has read. `tensors` says of names whether somebody else reads these tensors."""
        keys = [key for key in self._metadata if key not in self._read and not key.startswith(_DESCRIPTIONS)]
        return keys + [name for name in self.tensors if name not in self._read and not tensors(name)]


class _Reader:
    """Walks through a file from its beginning to the data of its tensors."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF v{version} is not supported")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        self.tensors: dict[str, TensorInfo] = {}
        for _ in range(num_tensors):
            name = self._string()
            shape = self._numbers("Q", self._number("I"))[::-1]
            self.tensors[name] = TensorInfo(shape, self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            return list(self._numbers(_NUMBERS[kind], count))
        return [self._value(kind) for _ in range(count)]

    def _number(self, letter: str) -> Any:
        return self._numbers(letter, 1)[0]

    def _numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        numbers = struct.unpack_from(f"<{count}{letter}", self._content, self.at)
        self.at += struct.calcsize(f"<{count}{letter}")
        return numbers

    def _string(self) -> str:
        length = self._number("Q")
        if self.at + length > len(self._content):
            raise ValueError("the file ends within a text")
        self.at += length
        return self._content[self.at - length : self.at].decode("utf-8")
