"""Products of activations with experts' weights in MXFP4: floating-point numbers of 4 bits, whose groups of 32 share a
power of two (Open Compute Project, "Microscaling Formats", 2023).

A number of 4 bits (e2m1: a sign, two bits of exponent, one of mantissa) is a bfloat16 with the same bits at the ends of
its fields, but for a factor of 2 ** 126, which goes into the group's scale; or a float16, with 2 ** 14. So all numbers
are exact, zero included, and making two of them takes five instructions.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Routes
from .experts import block_size, most_blocks, rows_of
from .integer import pack_codes
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

GROUP = 32
"""Inputs that share a scale."""
LARGEST_SCALE = 128
"""Of those that kernels take: 2 ** (scale - 127). With the factor, larger ones would be no number."""
_UNIT = 4
"""Groups whose codes are in one piece of 32 words of 16 bits: each word has one code of each group."""
_TILE_OF_ONE = 4, 8, 2
"""Of one token: outputs and units that a program takes at once, and its warps."""
_AT_ONCE = 2**24
"""Bytes of codes that are packed at once."""


class Weight(NamedTuple):
    """Of all experts, one after the other."""

    words: Tensor
    """(outputs, 32 * units) int16: the codes; see `app.kernels.gpu.integer.pack_codes`."""
    scales: Tensor
    """(outputs, units) int32: those of a unit's groups, the first as the lowest byte."""


def pack(blocks: Tensor, scales: Tensor) -> Weight:
    """A weight of blocks (outputs, inputs / 2) and scales (outputs, inputs / 32) as they are stored, both uint8."""
    words = [
        pack_codes(torch.stack((rows & 15, rows >> 4), -1).flatten(1), 4)
        for rows in blocks.split(max(1, _AT_ONCE // blocks.shape[1]))
    ]
    padded = torch.nn.functional.pad(scales, (0, -scales.shape[1] % _UNIT))
    return Weight(torch.cat(words), padded.view(torch.int32))


def _instructions(index: int, kind: str, to: int, mask: str) -> str:
    """What makes two numbers of the codes at a place of two words: $1, times $2. A number begins at bit `to`."""
    shift = to - 4 * index
    move = f"shl.b32 rest, $1, {shift}" if shift >= 0 else f"shr.b32 rest, $1, {-shift}"
    return (
        f"{{ .reg .b32 sign, rest, none; mov.b32 none, 0x80008000; shl.b32 sign, $1, {12 - 4 * index}; {move}; "
        f"and.b32 rest, rest, {mask}; lop3.b32 sign, sign, none, rest, 0xEA; fma.rn.{kind} $0, sign, $2, none; }}"
    )


_BFLOAT16 = tl.constexpr(tuple(_instructions(index, "bf16x2", 6, "0x01C001C0") for index in range(_UNIT)))
_FLOAT16 = tl.constexpr(tuple(_instructions(index, "f16x2", 9, "0x0E000E00") for index in range(_UNIT)))


@triton.jit
def _factors(scales, INDEX: tl.constexpr, IS_BFLOAT16: tl.constexpr):
    """What scales stand for, with the factor that numbers lack: 2 ** 126, or 2 ** 14."""
    scale = (scales >> (8 * INDEX)) & 255
    if IS_BFLOAT16:
        return ((scale + 126) << 23).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return ((scale + 14) << 23).to(tl.float32, bitcast=True).to(tl.float16)


@triton.jit
def _numbers(words, factors, INDEX: tl.constexpr, HAS_ASM: tl.constexpr):
    """What codes at a place of words stand for, with `factors` of the same shape, whose dtype is the result's."""
    IS_BFLOAT16: tl.constexpr = factors.dtype == tl.bfloat16
    if not HAS_ASM:
        codes = words.to(tl.int32) >> (4 * INDEX)
        numbers = ((codes & 7) << 22 | (codes & 8) << 28).to(tl.float32, bitcast=True)
        LACKS: tl.constexpr = 1.0 if IS_BFLOAT16 else 2.0**112
        return (numbers * (factors.to(tl.float32) * LACKS)).to(factors.dtype)
    ASM: tl.constexpr = _BFLOAT16[INDEX] if IS_BFLOAT16 else _FLOAT16[INDEX]
    return tl.inline_asm_elementwise(ASM, "=r,r,r", [words, factors], dtype=factors.dtype, is_pure=True, pack=2)


@triton.jit
def _one_token(
    x, words, scales, bias, out, experts, N, K, EVERY, UNITS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ASM: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of one pair, whose row of x is `pair // EVERY`; BLOCK_U units at once."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    IS_BFLOAT16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    pair = tl.program_id(1).to(tl.int64)
    row = tl.load(experts + pair).to(tl.int64) * N + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    u, i = tl.arange(0, BLOCK_U), tl.arange(0, 32)
    acc = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    for start in tl.static_range(0, UNITS, BLOCK_U):
        unit = start + u
        is_there = (n < N)[:, None] & (unit < UNITS)[None, :]
        at_word = (row[:, None] * UNITS + unit[None, :])[:, :, None] * 32 + i[None, None, :]
        w = tl.load(words + at_word, mask=is_there[:, :, None], other=0)
        of_units = tl.load(scales + row[:, None] * UNITS + unit[None, :], mask=is_there, other=0)
        for index in tl.static_range(4):
            at = (unit * 4 + index)[:, None] * 32 + i[None, :]
            xs = tl.load(x + pair // EVERY * K + at, mask=at < K, other=0.0).to(tl.float32)
            factors = _factors(of_units, index, IS_BFLOAT16)
            numbers = _numbers(w, tl.broadcast_to(factors[:, :, None], w.shape), index, HAS_ASM)
            acc += tl.sum(numbers.to(tl.float32) * xs[None, :, :], axis=2)
    result = tl.sum(acc, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + pair * N + n, result.to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["TOKENS"])
def _pairs(
    x, words, scales, bias, out, counts, pairs, TOKENS, N, K, UNITS, EXPERTS, EVERY, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ASM: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of some pairs of one expert. The weight is the left factor, because it has more rows."""
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    IS_BFLOAT16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    block = tl.program_id(0)
    first, m, to, is_pair, has_rows = rows_of(block, counts, pairs, TOKENS, N, EXPERTS, EVERY, BLOCK_M, BLOCK_E)
    n, i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, 32)
    is_row, row = n < N, first + n
    at_word = words + row[:, None] * (UNITS * 32) + i[None, :]
    at_x = x + m[None, :].to(tl.int64) * K + i[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for unit in range(UNITS * has_rows):
        w = tl.load(at_word + unit * 32, mask=is_row[:, None], other=0)
        of_unit = tl.load(scales + row * UNITS + unit, mask=is_row, other=0)
        for index in tl.static_range(4):
            at = (unit * 4 + index) * 32
            xs = tl.load(at_x + at, mask=is_pair[None, :] & (at + i < K)[:, None], other=0.0)
            factors = _factors(of_unit, index, IS_BFLOAT16)
            numbers = _numbers(w, tl.broadcast_to(factors[:, None], w.shape), index, HAS_ASM)
            acc = tl.dot(numbers, xs, acc)
    if HAS_BIAS:
        acc += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    place = to[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=is_pair[None, :] & is_row[:, None])


def _tile(rows: int) -> tuple[int, int, int]:
    """Outputs that a program takes at once, its warps, and stages of its loop."""
    return (64, 4, 4) if rows <= 64 else (128, 8, 4)


def grouped(x: Tensor, weight: Weight, bias: Tensor | None, routes: Routes) -> Tensor:
    """The product of each pair's row with the weight of its expert; see `app.kernels.ops.grouped`.

    x is bfloat16 or float16.
    """
    num_experts, size = len(routes.counts), x.shape[1]
    outputs, every = len(weight.words) // num_experts, routes.num_pairs // len(x)
    out = x.new_empty(routes.num_pairs, outputs)
    x, added, units = x.contiguous(), x if bias is None else bias, weight.scales.shape[1]
    if len(routes.experts) == 1:
        block_n, block_u, warps = _TILE_OF_ONE
        launch(
            _one_token, (triton.cdiv(outputs, block_n), routes.num_pairs),
            x, *weight, added, out, routes.experts, outputs, size, every,
            UNITS=units, BLOCK_N=block_n, BLOCK_U=block_u, HAS_BIAS=bias is not None, HAS_ASM=x.is_cuda, overlaps=True,
            num_warps=warps,
        )  # fmt: skip
        return out
    block_m = block_size(routes, most=128)
    block_n, warps, stages = _tile(block_m)
    launch(
        _pairs, (most_blocks(routes, block_m), triton.cdiv(outputs, block_n)),
        x, *weight, added, out, routes.counts, routes.pairs, len(routes.experts), outputs, size, units, num_experts,
        every, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_E=triton.next_power_of_2(num_experts),
        HAS_BIAS=bias is not None, HAS_ASM=x.is_cuda, overlaps=len(routes.experts) <= OVERLAPPING_ROWS,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
