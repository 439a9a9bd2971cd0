"""Reads what a GGUF file says: its metadata and its table of tensors, without the tensors' data.

The format is described in the repository ggml-org/ggml. Everything that is read is remembered, so that the
caller can refuse what nobody has read.
"""

import mmap
import re
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
_SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
"""The name of a part of a model."""
_DESCRIPTIONS = ("general.", "quantize.", "mradermacher.")
"""Beginnings of keys that only say where a file comes from."""


def parts_of(path: Path) -> list[Path]:
    """All files of a model, of which a file is one part, or a link to it. ValueError names one that is missing."""
    named = path.readlink() if path.is_symlink() and not _SPLIT.fullmatch(path.name) else path
    if (match := _SPLIT.fullmatch(named.name)) is None:
        return [path]
    count = int(match[2])
    parts = [named.with_name(f"{match[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(f"{named.name} is a part of a model, of which {missing[0]} is missing")
    return parts


class TensorInfo(NamedTuple):
    """A tensor, as the file's table has it."""

    shape: tuple[int, ...]
    """In torch's order."""
    kind: int
    """ggml's number of the data type."""
    begin: int
    """The byte at which its data begin, of all parts of the model one behind the other."""
    end: int
    """The byte at which its part ends."""


class GgufFile:
    """What a GGUF file says. If it is a part of a model, then the others are read with it.

    Raises ValueError for a file that is broken or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path, *others = parts_of(path)
        """The first part."""
        self._read: set[str] = set()
        self.tensors: dict[str, TensorInfo] = {}
        self._metadata, size = self._add(self.path, 0)
        for number, part in enumerate(others, 1):
            metadata, size = self._add(part, size)
            if metadata.get("split.no") != number:
                raise ValueError(f"{part} is not the part that its name says")
        counts = self.get("split.no", 0), self.get("split.count", 0) or 1, self.get("split.tensors.count")
        if counts[:2] != (0, len(others) + 1) or counts[2] not in (None, len(self.tensors)):
            raise ValueError(f"{self.path} is a part of a model whose other parts are not beside it (split.count)")
        self.architecture = str(self.get("general.architecture"))
        """llama.cpp's name of the family."""

    def _add(self, path: Path, before: int) -> tuple[dict[str, Any], int]:
        """Add the tensors of a part, which follows so many bytes; returns its metadata, and where it ends."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = before + len(content)
            try:
                reader = _Reader(content)
            except (struct.error, KeyError, UnicodeDecodeError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path} is not a readable GGUF file: {error!r}") from error
        self._read.add("general.alignment")
        alignment = reader.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        data_at = before + -(-reader.at // alignment) * alignment
        for name, (shape, kind, offset) in reader.tensors.items():
            self.tensors[name] = TensorInfo(shape, kind, data_at + offset, end)
        return reader.metadata, end

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

    def first_of_model(self, *keys: str) -> Any:
        """The value of the first of these keys that has one, or None. All of them count as read."""
        return next(filter(None, [self.of_model(key) for key in keys]), None)

    def by_layer(self, key: str, default: Any, count: int) -> list[Any]:
        """A value of each of so many layers. A value that is no list is that of all."""
        value = self.of_model(key, default)
        values = value[:count] if isinstance(value, list) else [value] * count
        if len(values) != count or any(type(one) is not type(values[0]) for one in values):
            raise ValueError(f"{key} is {value!r}, and there are {count} layers")
        return values

    def size(self, key: str) -> int:
        """A whole number from one on, under the family's name. ValueError for what is none."""
        value = self.of_model(key)
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.architecture}.{key} is {value!r}")
        return value

    def has_in_layers(self, tensor: str) -> bool:
        """Whether a layer has such a tensor."""
        return any(name.startswith("blk.") and name.split(".", 2)[-1] == tensor for name in self.tensors)

    def has_read(self, key: str) -> bool:
        """Whether somebody has asked for a value under the family's name."""
        return f"{self.architecture}.{key}" in self._read

    def leave_out(self, prefixes: list[str]) -> None:
        """Drop the tensors whose names begin so: those of a draft head, which only guesses."""
        beginnings = tuple(prefixes)
        self.tensors = {name: info for name, info in self.tensors.items() if not name.startswith(beginnings)}

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
        begin = self.begin_of(name, 4 * count)
        for part in parts_of(self.path):
            if begin < part.stat().st_size:
                break
            begin -= part.stat().st_size
        values: list[float] = np.fromfile(part, "<f4", count, offset=begin).tolist()
        return values

    def begin_of(self, name: str, num_bytes: int) -> int:
        """The byte at which a tensor's data begin, of all parts together, for who reads them. ValueError if the
        file ends before their end.
        """
        self._read.add(name)
        info = self.tensors[name]
        if info.begin + num_bytes > info.end:
            raise ValueError(f"the file ends within {name}")
        return info.begin

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
        self.tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        """Shape, type, and offset from the beginning of the data."""
        for _ in range(num_tensors):
            name = self._string()
            shape = self._numbers("Q", self._number("I"))[::-1]
            self.tensors[name] = shape, self._number("I"), self._number("Q")

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
