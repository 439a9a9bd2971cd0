"""What low-rank adapters add to the outputs of a linear layer, for tokens with different adapters side by side.

A first kernel multiplies tokens by the A of their adapters. What it gives is small; a second one multiplies that by B
and adds it to the outputs, or the product of the layer itself does so before it rounds them. Programs have some
neighbouring tokens and one slot after the other, with zeros in the place of the tokens of other adapters. See Punica
(Chen et al., 2023) and S-LoRA (Sheng et al., 2023).
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
_FEW_TOKENS = 1024
"""Up to so many, several programs share the inputs of a token, each the more inputs, the more there are."""
_LEAST_SHARE, _MOST_SHARES = 512, 16
_STEP = 128
"""A share is a multiple of this."""


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
    x, a, slots, out, TOKENS, SIZE, OF_SPLIT, SPLITS,
    COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """Those of BLOCK_M tokens whose adapter is in one slot, times BLOCK_R rows of its A, over OF_SPLIT inputs."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    own, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    k = split * OF_SPLIT + tl.arange(0, BLOCK_K)
    end = tl.minimum((split + 1) * OF_SPLIT, SIZE)
    tokens = x + m[:, None] * SIZE + k[None, :]
    rows = a + (own * COLUMNS + r)[None, :].to(tl.int64) * SIZE + k[:, None]
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    is_own = tl.load(slots + m, mask=m < TOKENS, other=-1) == own
    # Without such tokens, there is nothing to add up.
    steps = tl.where(tl.max(is_own.to(tl.int32), axis=0) > 0, tl.cdiv(OF_SPLIT, BLOCK_K), 0)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for step in range(steps):
        is_input = k + step * BLOCK_K < end
        values = tl.load(tokens + step * BLOCK_K, mask=is_own[:, None] & is_input[None, :], other=0.0)
        of_a = tl.load(rows + step * BLOCK_K, mask=(r < COLUMNS)[None, :] & is_input[:, None], other=0.0)
        acc = tl.dot(values, of_a, acc, input_precision="ieee")
    place = out + (split * TOKENS + m)[:, None] * COLUMNS + r[None, :]
    tl.store(place, acc, mask=is_own[:, None] & (r < COLUMNS)[None, :])


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
    mask = (slot >= 0)[None, :] & is_rank[:, None]
    for part in range(tl.min(parts, axis=0), last_part + 1):
        is_own = is_output & (parts == part)
        place = sums + m[None, :].to(tl.int64) * COLUMNS + (part * RANK + r)[:, None]
        shrunk = tl.load(place, mask=mask, other=0.0)
        for split in tl.static_range(1, SPLITS):
            shrunk += tl.load(place + split * TOKENS * COLUMNS, mask=mask, other=0.0)
        for s in range(first, last + 1):
            rows = b + (s * OUTPUTS + n)[:, None].to(tl.int64) * RANK
            of_b = tl.load(rows + r[None, :], mask=is_own[:, None] & is_rank[None, :], other=0.0)
            of_slot = tl.where((slot == s)[None, :], shrunk, 0.0)
            acc = tl.dot(of_b, of_slot.to(of_b.dtype), acc, input_precision="ieee")
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
    out, bias, sums, b, slots, TOKENS, OUTPUTS, END_0, END_1,
    COLUMNS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """What adapters add to BLOCK_N outputs of BLOCK_M tokens, and the bias. With ADDS it is added to `out`, if there is
    any.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    added = plus_expanded(
        tl.zeros([BLOCK_N, BLOCK_M], tl.float32), sums, b, slots, m, n, TOKENS, OUTPUTS, END_0, END_1,
        COLUMNS=COLUMNS, RANK=RANK, BLOCK_R=BLOCK_R, SPLITS=SPLITS,
    )  # fmt: skip
    if HAS_BIAS:
        added += tl.load(bias + n, mask=n < OUTPUTS, other=0.0).to(tl.float32)[:, None]
    place = out + m[None, :] * OUTPUTS + n[:, None]
    mask = (m < TOKENS)[None, :] & (n < OUTPUTS)[:, None]
    if ADDS:
        slot = tl.load(slots + m, mask=m < TOKENS, other=-1)
        mask = mask & (slot >= 0)[None, :]
        added += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, added.to(out.dtype.element_ty), mask=mask)


class ShrinkTile(NamedTuple):
    """Tokens and inputs that a program takes at once, stages of its loop, and the inputs that are its share."""

    tokens: int
    inputs: int
    stages: int
    share: int


def shrink_tile(tokens: int, size: int, is_batch_invariant: bool, dtype: torch.dtype) -> ShrinkTile:
    """For so many tokens of so many inputs."""
    share = max(_LEAST_SHARE, triton.cdiv(triton.cdiv(size, _MOST_SHARES), _STEP) * _STEP)
    # Measured on an H200.
    if tokens <= _FEW_TOKENS:
        return ShrinkTile(16 if tokens <= 16 else 32, 128, 3, share)
    inputs = 64 if dtype is torch.float32 else 128  # which has to fit into shared memory
    return ShrinkTile(64, inputs, 5, share if is_batch_invariant else size)


def expand_tile(tokens: int) -> tuple[int, int]:
    """Tokens and outputs that a program takes at once."""
    return 16 if tokens <= 16 else 32, 256


def shrink(x: Tensor, adapters: Adapters, slots: Tensor) -> Shrunk:
    """Multiply tokens x (tokens, inputs) by the A of their adapters, slots (tokens,) int32."""
    tokens, size = x.shape
    num_slots, columns, _ = adapters.a.shape
    tile = shrink_tile(tokens, size, adapters.is_batch_invariant, x.dtype)
    block_r = min(_MOST_COLUMNS, max(16, triton.next_power_of_2(columns)))
    splits = triton.cdiv(size, tile.share)
    sums = torch.empty(splits, tokens, columns, dtype=torch.float32, device=x.device)
    launch(
        _shrink, (triton.cdiv(tokens, tile.tokens), triton.cdiv(columns, block_r), splits * num_slots),
        x.contiguous(), adapters.a, slots, sums, tokens, size, tile.share, splits,
        COLUMNS=columns, BLOCK_M=tile.tokens, BLOCK_R=block_r, BLOCK_K=tile.inputs,
        overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4, num_stages=tile.stages,
    )  # fmt: skip
    return Shrunk(sums, slots, adapters)


def expanded(shrunk: Shrunk, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What adapters add to a layer's outputs (tokens, outputs), zeros without an adapter; and the bias."""
    out = torch.empty(len(shrunk.slots), sum(shrunk.adapters.sizes), dtype=dtype, device=shrunk.sums.device)
    _launch_expand(shrunk, out, bias, adds=False)
    return out


def expand(shrunk: Shrunk, out: Tensor) -> None:
    """Add to the outputs of a layer (tokens, outputs) what adapters add."""
    _launch_expand(shrunk, out, None, adds=True)


def _launch_expand(shrunk: Shrunk, out: Tensor, bias: Tensor | None, adds: bool) -> None:
    tokens, outputs = out.shape
    splits, _, columns = shrunk.sums.shape
    block_m, block_n = expand_tile(tokens)
    launch(
        _expand, (triton.cdiv(tokens, block_m), triton.cdiv(outputs, block_n)),
        out, out if bias is None else bias, shrunk.sums, shrunk.adapters.b, shrunk.slots, tokens, outputs,
        *shrunk.first_ends, COLUMNS=columns, RANK=shrunk.adapters.rank, BLOCK_R=shrunk.block, SPLITS=splits,
        BLOCK_M=block_m, BLOCK_N=block_n, HAS_BIAS=bias is not None, ADDS=adds,
        overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
