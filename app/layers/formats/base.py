"""What a format is: the tensors that stand for a layer's weight in a checkpoint, and how they are read."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_AT_ONCE = 2**20
"""Numbers of a weight that are converted together. It is enough to keep all cores busy."""
BYTE = 8
"""Bits of a byte."""
WORD = 32
"""Bits of an int32 in which codes are packed."""


class Stored(NamedTuple):
    """A tensor of a checkpoint. One of dtype float32 here may have any other dtype of plain numbers there."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class Weight(Protocol):
    """A quantized weight in memory."""

    def dense(self) -> Tensor:
        """The weight that this stands for, (out_features, in_features) float32, rounded once."""
        ...

    def is_finite(self) -> bool:
        """Whether all of its numbers are."""
        ...


class Format(Protocol):
    """How a checkpoint stores the weight of a linear layer."""

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """The tensors of a layer, by what follows its name; ValueError if a weight of this size cannot be stored so."""
        ...

    def decode(self, tensors: Mapping[str, Tensor]) -> Weight:
        """The weight, without loss. ValueError for numbers that cannot be."""
        ...


class Encoder(Format, Protocol):
    """A format that is written, too."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors for a weight (out_features, in_features), rounded to what they can stand for."""
        ...


def words(size: int, bits: int, what: str) -> int:
    """How many words hold so many codes; ValueError if they would not be full."""
    return whole_parts(size, WORD // bits, what)


def whole_parts(size: int, part: int, what: str) -> int:
    """`size / part`; ValueError if that is no whole number."""
    if size % part:
        raise ValueError(f"{size} {what} are not whole groups of {part}")
    return size // part


def some_rows(weight: Tensor) -> Iterator[slice]:
    """A weight (rows, columns), a few rows at a time: what is computed on the way takes several times their memory."""
    size = max(1, _AT_ONCE // weight.shape[1])
    return (slice(start, start + size) for start in range(0, len(weight), size))


def unpack(packed: Tensor, bits: int) -> Tensor:
    """From (rows, words) int32 to codes (rows, words * codes of a word) uint8, the lowest bits first."""
    data = packed.contiguous().view(torch.uint8)
    codes = torch.empty(*data.shape, BYTE // bits, dtype=torch.uint8, device=data.device)
    for place in range(BYTE // bits):
        codes[..., place] = (data >> place * bits) & (2**bits - 1)
    return codes.flatten(1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """From codes (rows, n) uint8 to (rows, words) int32, the lowest bits first. The last word may not be full."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (WORD // bits)))
    places = padded.unflatten(1, (-1, BYTE // bits))
    data = places[..., 0].clone(memory_format=torch.contiguous_format)
    for place in range(1, BYTE // bits):
        data |= places[..., place] << place * bits
    return data.view(torch.int32)


def code_bits(bits: int) -> int:
    """What codes of so many bits are stored in: 4 or 8."""
    return 4 if bits <= 4 else 8


def sorted_by_group(codes: Tensor, index: Tensor, num_groups: int) -> tuple[Tensor, Tensor | None]:
    """Codes (out_features, in_features) with their inputs sorted by the group that `index` says each is in.

    Also the order of the inputs (in_features,); None if they are sorted already. ValueError if the groups are not
    equally large.
    """
    group = codes.shape[1] // num_groups
    if index.min() < 0 or index.max() >= num_groups or (index.bincount(minlength=num_groups) != group).any():
        raise ValueError(f"g_idx does not divide the inputs into {num_groups} groups of {group}")
    order = index.argsort(stable=True)
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        return codes, None
    return codes[:, order], order
