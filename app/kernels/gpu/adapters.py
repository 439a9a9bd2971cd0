"""What low-rank adapters add to the outputs of a linear layer, for tokens with different adapters side by side.

A first kernel multiplies tokens by the A of their adapters. What it gives is small; a second one multiplies that by B
and adds it to the outputs, or the product of the layer itself does so before it rounds them. Each program has some
neighbouring tokens, and goes through the slots of their adapters, with zeros in the place of the tokens of others. See
Punica (Chen et al., 2023) and S-LoRA (Sheng et al., 2023).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adapters import Adapters
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

_MOST_COLUMNS = 64
"""Rows of A that a program takes at once."""
_SPLITS = 8
"""Programs that share the inputs of a token, where there are few tokens."""
_STEP = 128
"""A program's share is a multiple of this."""
_FEW_TOKENS = 1024


class Shrunk(NamedTuple):
    """Tokens multiplied by the A of their adapters."""

    sums: Tensor
    """(splits, tokens, parts * rank) float32, to be added up; undefined for tokens without an adapter."""
    slots: Tensor
    """(tokens,) int32; -1 for a token without an adapter."""
    adapters: Adapters

    @property
    def first_ends(self) -> tuple[int, int]:
        """Where the first and the second part of the outputs end; the last part ends with the outputs."""
        sizes = (*self.adapters.sizes, 0, 0)
        return sizes[0], sizes[0] + sizes[1]

    @property
    def block(self) -> int:
        """The rank, as products of tensor cores take it."""
        return max(16, triton.next_power_of_2(self.adapters.rank))


@triton.jit
def _shrink(
    x, a, slots, out, TOKENS, SIZE, COLUMNS: tl.constexpr, OF_SPLIT,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_M tokens times BLOCK_R rows of A, over OF_SPLIT inputs."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = tl.program_id(2) * OF_SPLIT
    end = tl.minimum(begin + OF_SPLIT, SIZE)
    k = tl.arange(0, BLOCK_K)
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    slot = tl.load(slots + m, mask=m < TOKENS, other=-1)
    last = tl.max(slot, axis=0)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for s in range(tl.min(tl.where(slot < 0, tl.maximum(last, 0), slot), axis=0), last + 1):
        rows = a + (s * COLUMNS + r)[None, :].to(tl.int64) * SIZE
        for start in range(begin, end, BLOCK_K):
            is_input = start + k < end
            tokens = tl.load(
                x + m[:, None] * SIZE + start + k[None, :], mask=(slot == s)[:, None] & is_input[None, :], other=0.0
            )
            of_a = tl.load(rows + start + k[:, None], mask=(r < COLUMNS)[None, :] & is_input[:, None], other=0.0)
            acc = tl.dot(tokens, of_a, acc, input_precision="ieee")
    place = out + (tl.program_id(2) * TOKENS + m)[:, None] * COLUMNS + r[None, :]
    tl.store(place, acc, mask=(slot >= 0)[:, None] & (r < COLUMNS)[None, :])


@triton.jit
def _part(n, END_0, END_1):
    """The part of the outputs that outputs belong to."""
    return (n >= END_0).to(tl.int32) + (n >= END_1).to(tl.int32)


@triton.jit
def plus_expanded(
    acc, sums, b, slots, m, n, TOKENS, OUTPUTS, END_0, END_1,
    COLUMNS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """acc (outputs n, tokens m) float32, plus what adapters add. n are neighbours, and so are m."""
    r = tl.arange(0, BLOCK_R)
    is_output, is_rank = n < OUTPUTS, r < RANK
    slot = tl.load(slots + m, mask=m < TOKENS, other=-1)
    last = tl.max(slot, axis=0)
    first = tl.min(tl.where(slot < 0, tl.maximum(last, 0), slot), axis=0)
    parts = _part(n, END_0, END_1)
    last_part = tl.max(tl.where(is_output, parts, 0), axis=0)
    for part in range(tl.min(parts, axis=0), last_part + 1):
        is_own = is_output & (parts == part)
        for s in range(first, last + 1):
            place = sums + m[None, :].to(tl.int64) * COLUMNS + (part * RANK + r)[:, None]
            mask = (slot == s)[None, :] & is_rank[:, None]
            shrunk = tl.load(place, mask=mask, other=0.0)
            for split in tl.static_range(1, SPLITS):
                shrunk += tl.load(place + split * TOKENS * COLUMNS, mask=mask, other=0.0)
            rows = b + (s * OUTPUTS + n)[:, None].to(tl.int64) * RANK
            of_b = tl.load(rows + r[None, :], mask=is_own[:, None] & is_rank[None, :], other=0.0)
            acc = tl.dot(of_b, shrunk.to(of_b.dtype), acc, input_precision="ieee")
    return acc


@triton.jit
def plus_expanded_of_one(
    acc, sums, b, slots, n, OUTPUTS, END_0, END_1,
    COLUMNS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The same for a token that is alone: acc (outputs n,)."""
    r = tl.arange(0, BLOCK_R)
    slot = tl.load(slots + n * 0)
    place = sums + (_part(n, END_0, END_1) * RANK)[:, None] + r[None, :]
    mask = ((n < OUTPUTS) & (slot >= 0))[:, None] & (r < RANK)[None, :]
    shrunk = tl.load(place, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        shrunk += tl.load(place + split * COLUMNS, mask=mask, other=0.0)
    of_b = tl.load(b + (slot * OUTPUTS + n)[:, None].to(tl.int64) * RANK + r[None, :], mask=mask, other=0.0)
    return acc + tl.sum(of_b.to(tl.float32) * shrunk, axis=1)


@triton.jit
def _expand(
    out, sums, b, slots, TOKENS, OUTPUTS, END_0, END_1,
    COLUMNS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """Add to BLOCK_N outputs of BLOCK_M tokens what their adapters add."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    slot = tl.load(slots + m, mask=m < TOKENS, other=-1)
    place = out + m[None, :] * OUTPUTS + n[:, None]
    mask = (slot >= 0)[None, :] & (n < OUTPUTS)[:, None]
    acc = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    acc = plus_expanded(
        acc, sums, b, slots, m, n, TOKENS, OUTPUTS, END_0, END_1, COLUMNS=COLUMNS, RANK=RANK, BLOCK_R=BLOCK_R,
        SPLITS=SPLITS,
    )  # fmt: skip
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)


def shrink(x: Tensor, adapters: Adapters, slots: Tensor) -> Shrunk:
    """Multiply tokens x (tokens, inputs) by the A of their adapters, slots (tokens,) int32."""
    tokens, size = x.shape
    columns = adapters.a.shape[1]
    is_few = tokens <= _FEW_TOKENS
    splits = _SPLITS if is_few or adapters.is_batch_invariant else 1
    block_m, block_k = (16, _STEP) if is_few else (64, 64)
    block_r = min(_MOST_COLUMNS, max(16, triton.next_power_of_2(columns)))
    sums = torch.empty(splits, tokens, columns, dtype=torch.float32, device=x.device)
    of_split = triton.cdiv(triton.cdiv(size, splits), _STEP) * _STEP
    launch(
        _shrink, (triton.cdiv(tokens, block_m), triton.cdiv(columns, block_r), splits),
        x.contiguous(), adapters.a, slots, sums, tokens, size, columns, of_split,
        BLOCK_M=block_m, BLOCK_R=block_r, BLOCK_K=block_k, overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
    return Shrunk(sums, slots, adapters)


def expand(shrunk: Shrunk, out: Tensor) -> None:
    """Add to the outputs of a layer (tokens, outputs) what adapters add."""
    tokens, outputs = out.shape
    splits, _, columns = shrunk.sums.shape
    block_m, block_n = (16, 128) if tokens <= _FEW_TOKENS else (64, 128)
    launch(
        _expand, (triton.cdiv(tokens, block_m), triton.cdiv(outputs, block_n)),
        out, shrunk.sums, shrunk.adapters.b, shrunk.slots, tokens, outputs, *shrunk.first_ends,
        COLUMNS=columns, RANK=shrunk.adapters.rank, BLOCK_R=shrunk.block, SPLITS=splits,
        BLOCK_M=block_m, BLOCK_N=block_n, overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
