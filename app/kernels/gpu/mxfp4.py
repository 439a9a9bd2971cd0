"""Products of activations with experts' weights in MXFP4: floating-point numbers of 4 bits, whose groups of 32 share a
power of two (Open Compute Project, "Microscaling Formats", 2023).

A number of 4 bits (e2m1: a sign, two bits of exponent, one of mantissa) is a float32 with the same bits at the ends of
its fields, but for a factor of 2 ** 126, which goes into the group's scale. So all numbers are exact, zero included.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Routes
from .experts import block_size, most_blocks, rows_of
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

GROUP = 32
"""Inputs that share a scale."""
UNIT = 64
"""Inputs whose codes are in one piece of 32 bytes: byte i has those of inputs i, as its lower half, and 32 + i."""
LARGEST_SCALE = 128
"""Of those that kernels take: 2 ** (scale - 127). With the factor, larger ones would be no float32."""
_TILE_OF_ONE = 4, 16, 2
"""Of one token: outputs and units that a program takes at once, and its warps."""
_AT_ONCE = 2**24
"""Bytes that are packed at once."""


class Weight(NamedTuple):
    """Of all experts, one after the other."""

    blocks: Tensor
    """(outputs, inputs / 2) uint8"""
    scales: Tensor
    """(outputs, inputs / 32) uint8"""


def pack(blocks: Tensor) -> None:
    """Bring codes (outputs, inputs / 2), of which a byte has neighbouring ones, into the order of UNIT, in place."""
    for rows in blocks.split(max(1, _AT_ONCE // blocks.shape[1])):
        units = rows.unflatten(1, (-1, UNIT // 2))
        codes = torch.stack((units & 15, units >> 4), -1).flatten(2)  # (rows, units, 64) in the order of inputs
        units.copy_(codes[..., : UNIT // 2] | codes[..., UNIT // 2 :] << 4)


@triton.jit
def _numbers(codes):
    """What codes stand for, times 2 ** -126, float32."""
    return ((codes & 7) << 22 | (codes & 8) << 28).to(tl.float32, bitcast=True)


@triton.jit
def _factors(scales):
    """What scales stand for, times 2 ** 126, float32."""
    return ((scales.to(tl.int32) + 126) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _one_token(
    x, blocks, scales, bias, out, experts, N, K, EVERY, UNITS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of one pair, whose row of x is `pair // EVERY`; BLOCK_U units at once."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    pair = tl.program_id(1).to(tl.int64)
    first = tl.load(experts + pair).to(tl.int64) * N
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    u, i = tl.arange(0, BLOCK_U), tl.arange(0, 32)
    row = first + n
    acc = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    for start in tl.static_range(0, UNITS, BLOCK_U):
        unit = start + u
        is_there = (n < N)[:, None] & (unit < UNITS)[None, :]
        at_code = blocks + row[:, None, None] * (K // 2) + unit[None, :, None] * 32 + i[None, None, :]
        codes = tl.load(at_code, mask=is_there[:, :, None], other=0).to(tl.int32)
        at_x = x + pair // EVERY * K + unit[:, None] * 64 + i[None, :]
        low = tl.load(at_x, mask=(unit < UNITS)[:, None], other=0.0).to(tl.float32)
        high = tl.load(at_x + 32, mask=(unit < UNITS)[:, None], other=0.0).to(tl.float32)
        at_scale = scales + row[:, None] * (K // 32) + unit[None, :] * 2
        low_scale = tl.load(at_scale, mask=is_there, other=0)
        high_scale = tl.load(at_scale + 1, mask=is_there, other=0)
        acc += tl.sum(_numbers(codes) * low[None, :, :], axis=2) * _factors(low_scale)
        acc += tl.sum(_numbers(codes >> 4) * high[None, :, :], axis=2) * _factors(high_scale)
    result = tl.sum(acc, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + pair * N + n, result.to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["TOKENS"])
def _pairs(
    x, blocks, scales, bias, out, counts, pairs, TOKENS, N, K, UNITS, EXPERTS, EVERY, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of some pairs of one expert. The weight is the left factor, because it has more rows."""
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    block = tl.program_id(0)
    first, m, to, is_pair, has_rows = rows_of(block, counts, pairs, TOKENS, N, EXPERTS, EVERY, BLOCK_M, BLOCK_E)
    n, i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, 32)
    is_row, row = n < N, first + n
    at_code = blocks + row[:, None] * (K // 2) + i[None, :]
    at_scale = scales + row * (K // 32)
    at_x = x + m[None, :].to(tl.int64) * K + i[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for unit in range(UNITS * has_rows):
        codes = tl.load(at_code + unit * 32, mask=is_row[:, None], other=0).to(tl.int32)
        low_scale = _factors(tl.load(at_scale + unit * 2, mask=is_row, other=0))
        high_scale = _factors(tl.load(at_scale + unit * 2 + 1, mask=is_row, other=0))
        low = tl.load(at_x + unit * 64, mask=is_pair[None, :], other=0.0)
        high = tl.load(at_x + unit * 64 + 32, mask=is_pair[None, :], other=0.0)
        acc = tl.dot((_numbers(codes) * low_scale[:, None]).to(low.dtype), low, acc)
        acc = tl.dot((_numbers(codes >> 4) * high_scale[:, None]).to(low.dtype), high, acc)
    if HAS_BIAS:
        acc += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    place = to[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=is_pair[None, :] & is_row[:, None])


def _tile(rows: int) -> tuple[int, int, int]:
    """Outputs that a program takes at once, its warps, and stages of its loop."""
    return (64, 4, 4) if rows <= 64 else (128, 8, 4)


def grouped(x: Tensor, weight: Weight, bias: Tensor | None, routes: Routes) -> Tensor:
    """The product of each pair's row with the weight of its expert; see `app.kernels.ops.grouped`.

    x is bfloat16 or float16, and the weight's codes are in the order of UNIT.
    """
    num_experts, size = len(routes.counts), x.shape[1]
    outputs, every = len(weight.blocks) // num_experts, routes.num_pairs // len(x)
    out = x.new_empty(routes.num_pairs, outputs)
    x, added, units = x.contiguous(), x if bias is None else bias, size // UNIT
    if len(routes.experts) == 1:
        block_n, block_u, warps = _TILE_OF_ONE
        launch(
            _one_token, (triton.cdiv(outputs, block_n), routes.num_pairs),
            x, *weight, added, out, routes.experts, outputs, size, every,
            UNITS=units, BLOCK_N=block_n, BLOCK_U=block_u, HAS_BIAS=bias is not None, overlaps=True, num_warps=warps,
        )  # fmt: skip
        return out
    block_m = block_size(routes, most=128)
    block_n, warps, stages = _tile(block_m)
    launch(
        _pairs, (most_blocks(routes, block_m), triton.cdiv(outputs, block_n)),
        x, *weight, added, out, routes.counts, routes.pairs, len(routes.experts), outputs, size, units, num_experts,
        every, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_E=triton.next_power_of_2(num_experts),
        HAS_BIAS=bias is not None, overlaps=len(routes.experts) <= OVERLAPPING_ROWS, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
