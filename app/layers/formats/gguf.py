"""The blocks of GGUF files, as https://github.com/ggml-org/ggml describes them (ggml-common.h, ggml-quants.c).

A row of a tensor is a run of blocks. Each block stands for 32 or 256 neighbouring inputs: it has a scale, or a scale of
scales, in float16, and its codes, whose bits are spread over the block.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...checkpoint.gguf.tensors import KIND_OF, row_bytes
from ...checkpoint.quantization import Scheme
from .base import Stored
from .codes import Codes, around, signed


class Gguf:
    """Rows of blocks of one type."""

    def __init__(self, scheme: Scheme) -> None:
        self._kind = scheme.block_type

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        return {"blocks": Stored((out_features, row_bytes(self._kind, in_features)), torch.uint8)}

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        return read_blocks(self._kind, tensors["blocks"])


def read_blocks(kind: str, data: Tensor) -> Codes:
    """Codes of rows of blocks (out_features, row_bytes) uint8."""
    return _READERS[kind](data.unflatten(1, (-1, KIND_OF[kind].size)))


def _half(blocks: Tensor, at: int) -> Tensor:
    """A float16 of each block, as float32: (out_features, blocks)."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()


def _nibbles(data: Tensor) -> Tensor:
    """Two codes from each byte (..., n): the lower ones first, then the upper ones (..., 2 n)."""
    data = data.contiguous()  # to compute long rows of bytes, not those of one block after the other
    return torch.stack((data & 15, data >> 4), -2).flatten(-2)


def _fifth_bits(data: Tensor) -> Tensor:
    """32 single bits from four bytes (..., 4), as 16 in their place above a nibble: (..., 32)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(-1) >> shifts) & 1).flatten(-2) << 4


def _q4_0(blocks: Tensor) -> Codes:
    return around(_nibbles(blocks[..., 2:]).flatten(1), _half(blocks, 0), 8, 4)


def _q4_1(blocks: Tensor) -> Codes:
    return Codes(_nibbles(blocks[..., 4:]).flatten(1), _half(blocks, 0), _half(blocks, 2), 4)


def _q5_0(blocks: Tensor) -> Codes:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return around(codes.flatten(1), _half(blocks, 0), 16, 8)


def _q5_1(blocks: Tensor) -> Codes:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Codes(codes.flatten(1), _half(blocks, 0), _half(blocks, 2), 8)


def _q8_0(blocks: Tensor) -> Codes:
    return signed(blocks[..., 2:].flatten(1).view(torch.int8), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Codes:
    scales = blocks[..., :16]
    d, least = _half(blocks, 80).unsqueeze(-1), _half(blocks, 82).unsqueeze(-1)
    return Codes(_twos(blocks[..., 16:80]).flatten(1), _flat(d * (scales & 15)), _flat(-least * (scales >> 4)), 4)


def _q3_k(blocks: Tensor) -> Codes:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    third = ((blocks[..., None, :32] >> shifts[:, None]) & 1).flatten(-2)  # (..., 256), in the order of `_twos`
    codes = _twos(blocks[..., 32:96]) | third << 2
    packed = blocks[..., 96:108]
    low = _nibbles(packed[..., :8])
    high = ((packed[..., None, 8:] >> shifts[:8:2, None]) & 3).flatten(-2)
    scales = _half(blocks, 108).unsqueeze(-1) * ((low | high << 4).float() - 32)
    return around(codes.flatten(1), _flat(scales), 4, 4)


def _q4_k(blocks: Tensor) -> Codes:
    scales, zeros = _scales_of_eight(blocks)
    return Codes(_nibbles_of_64(blocks[..., 16:]).flatten(1), scales, zeros, 4)


def _q5_k(blocks: Tensor) -> Codes:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    fifth = ((blocks[..., None, 16:48] >> shifts[:, None]) & 1).flatten(-2) << 4
    scales, zeros = _scales_of_eight(blocks)
    return Codes((_nibbles_of_64(blocks[..., 48:]) | fifth).flatten(1), scales, zeros, 8)


def _q6_k(blocks: Tensor) -> Codes:
    low = blocks[..., :128].unflatten(-1, (2, 64))
    low = torch.cat((low & 15, low >> 4), -1)  # (..., 2, 128)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts[:, None]) & 3
    codes = (low | high.flatten(-2) << 4).flatten(-2)
    scales = _half(blocks, 208).unsqueeze(-1) * blocks[..., 192:208].contiguous().view(torch.int8)
    return around(codes.flatten(1), _flat(scales), 32, 8)


def _flat(scales: Tensor) -> Tensor:
    """From (out_features, blocks, groups of a block) to (out_features, groups)."""
    return scales.float().flatten(1)


def _twos(data: Tensor) -> Tensor:
    """Four codes of two bits from each byte (..., 64): 256, 32 from the same bits of neighbouring bytes."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=data.device)
    return ((data.unflatten(-1, (2, 1, 32)) >> shifts[:, None]) & 3).flatten(-3)


def _nibbles_of_64(data: Tensor) -> Tensor:
    """256 codes from 128 bytes: of each 32 bytes first the lower nibbles, then the upper ones."""
    return _nibbles(data.unflatten(-1, (4, 32))).flatten(-2)


def _scales_of_eight(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zeros of the eight groups of a block, from twelve bytes with six bits each."""
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6) << 4), -1)
    least = torch.cat((second & 63, (third >> 4) | (second >> 6) << 4), -1)
    d, of_least = _half(blocks, 0).unsqueeze(-1), _half(blocks, 2).unsqueeze(-1)
    return _flat(d * scales), _flat(-of_least * least)


_READERS: dict[str, Callable[[Tensor], Codes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""From blocks of a type, (out_features, blocks, bytes of a block) uint8."""
