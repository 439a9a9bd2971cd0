"""Products of activations with weights that are small whole numbers, computed in whole numbers.

A row of activations is quantized to 8 bits in groups of 32, each with its largest number as 127. The dot product of a
part (of 32 inputs, or of 16 where a group has no more) is exact, since it is a sum of whole numbers. Scales are applied
to it in float32, one part after the other. So a row's result depends neither on the rows beside it nor on how they are
cut into tiles.

The inner loop is written as vector instructions, in `app.kernels.cpu.vector_code`. They add up whole numbers, so every
processor gives the same results.
"""

import logging
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..routes import Routes
from .kernel import Argument, constant, describe, kernel
from .numerics import from_float, inline, of_half, to_float
from .vector_code import lanes_of_processor, quantize_group, tile

log = logging.getLogger(__name__)

GROUP = 32
"""Activations that share a scale."""
_QUAD = 4
"""Neighbouring inputs whose codes lie in one word of 32 bits."""
_HALF = GROUP // 2
"""The other size that a part may have."""
_WORTH_A_THREAD = 2**18
"""How many activations there are when several threads quantize them faster than one."""
_TILE = 4
"""Rows that are computed together, so that a panel's codes are read once for all of them."""


@lru_cache
def _product(lanes: int, bits: int, part: int, scale_bytes: int) -> Any:
    """The kernel for one form of weights. It takes

    - codes (panels, parts, bytes) uint8; scales and zeros (panels, groups, lanes), float32, or float16 as uint16,
    - x (rows, inputs) int8; factors and sums (rows, parts) float32: what a part's whole numbers are to be multiplied
      by, and what the part adds up to,
    - step: parts of a group,
    - bias (all outputs,), and whether there is one,
    - counts (experts,) int32: how many rows each of the experts has whose weights these are, one after the other,
    - places (rows,) int32: the rows of the result, and whether these are not just 0, 1, 2, ...
    - out (rows, all outputs), float32 or as bfloat16 is kept, of which it fills `outputs` columns from `first` on.

    Its tasks are panels of one expert, each with those of the others in its place.
    """

    @kernel
    def run(  # type: ignore[no-untyped-def]
        begin, end, codes, scales, zeros, x, factors, sums, step, bias, has_bias, first, outputs, counts, places,
        is_placed, out,
    ):  # fmt: skip
        added, last = np.zeros(lanes, np.float32), np.empty((_TILE, lanes), out.dtype)
        panels, stop = codes.shape[0] // counts.shape[0], 0
        for expert in range(counts.shape[0]):
            start, stop = stop, stop + counts[expert]
            if start == stop:
                continue
            for panel in range(begin, end):
                at, row = expert * panels + panel, start
                of_panel = codes[at].ctypes.data, scales[at].ctypes.data, zeros[at].ctypes.data
                column = first + panel * lanes
                width = min(lanes, first + outputs - column)
                if has_bias:
                    for lane in range(width):
                        added[lane] = to_float(bias[expert * outputs + column + lane])
                # The last panel may be wider than what is left of the outputs.
                is_direct = width == lanes and not is_placed
                target = out[:, column:] if is_direct else last
                while row < stop:
                    of_rows = x[row].ctypes.data, x.shape[1], factors[row].ctypes.data, sums[row].ctypes.data
                    results = target[row if is_direct else 0 :].ctypes.data, target.strides[0]
                    addresses = (*of_panel, *of_rows, codes.shape[1], step, added.ctypes.data, *results)
                    left = stop - row
                    if left >= _TILE:
                        count = _TILE
                        tile(lanes, bits, part, scale_bytes, _TILE, addresses, out)  # type: ignore[call-arg]
                    elif left == 3:
                        count = 3
                        tile(lanes, bits, part, scale_bytes, 3, addresses, out)  # type: ignore[call-arg]
                    elif left == 2:
                        count = 2
                        tile(lanes, bits, part, scale_bytes, 2, addresses, out)  # type: ignore[call-arg]
                    else:
                        count = 1
                        tile(lanes, bits, part, scale_bytes, 1, addresses, out)  # type: ignore[call-arg]
                    if not is_direct:
                        for of_tile in range(count):
                            place = places[row + of_tile] if is_placed else row + of_tile
                            out[place, column : column + width] = last[of_tile, :width]
                    row += count

    return run


@inline
def _quantize_row(x, part, q, factors, sums):  # type: ignore[no-untyped-def]
    whole_groups = x.shape[0] // GROUP * GROUP
    for begin in range(0, whole_groups, GROUP):
        _quantize_at(x[begin : begin + GROUP], begin, part, q, factors, sums)
    if whole_groups < x.shape[0]:
        rest = np.zeros(GROUP, x.dtype)
        for i in range(whole_groups, x.shape[0]):
            rest[i - whole_groups] = x[i]
        _quantize_at(rest, whole_groups, part, q, factors, sums)


@inline
def _quantize_at(x, begin, part, q, factors, sums):  # type: ignore[no-untyped-def]
    of_parts = factors[begin // part :].ctypes.data, sums[begin // part :].ctypes.data
    addresses = (x.ctypes.data, q[begin:].ctypes.data, *of_parts)
    if part == GROUP:
        quantize_group(GROUP, GROUP, addresses, x)  # type: ignore[call-arg]
    else:
        quantize_group(GROUP, _HALF, addresses, x)  # type: ignore[call-arg]


@kernel
def _quantize(begin, end, x, pairs, every, part, q, factors, sums):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        source = pairs[row] // every if every else row
        _quantize_row(x[source], part, q[row], factors[row], sums[row])


@kernel
def _pack(begin, end, words, in_halves, panels):  # type: ignore[no-untyped-def]
    """From words (outputs, quads of all inputs) of four codes each to panels (panels, parts, words, outputs of one)."""
    _, parts, size, width = panels.shape
    quads = 2 * size if in_halves else size
    for panel in range(begin, end):
        count = min(width, words.shape[0] - panel * width)
        if count < width:
            panels[panel] = 0
        for part in range(parts):
            for at in range(size):
                for lane in range(count):
                    of_output, quad = words[panel * width + lane], part * quads + at
                    word = of_output[quad]
                    if in_halves:
                        word |= of_output[quad + size] << np.int32(4)
                    panels[panel, part, at, lane] = word


class Packed(NamedTuple):
    """A weight in the order in which the kernel reads it."""

    codes: Argument
    scales: Argument
    zeros: Argument
    bits: int
    part: int
    """Inputs whose whole numbers are added up before a scale is applied: 16 or 32."""
    step: int
    """Parts of a group."""
    outputs: int
    """Of each expert, if the weight is that of several."""
    width: int
    """Outputs of a panel."""
    scale_bytes: int


@cache
def lanes() -> int:
    """Outputs of a panel, one in each lane of a vector; 0 if this processor has no instructions for the kernel."""
    known = lanes_of_processor()
    log.info("products of whole numbers: %s", {16: "AVX512-VNNI", 8: "AVX2"}[known[0]] if known else "none")
    return known[0] if known else 0


def can_pack(in_features: int, group: int) -> bool:
    """Whether the kernel takes groups of this size."""
    return group % 16 == 0 or group == in_features


def pack(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, width: int = 0, num_experts: int = 1) -> Packed:
    """Bring codes (outputs, inputs) with scales and zeros (outputs, groups) into panels of `width` outputs.

    A panel has, for four neighbouring inputs at a time, the codes of all of its outputs. With 4 bits a byte holds two
    codes: the lower one is of the first half of a part. The width that this processor is best at is `lanes()`. Of
    experts, whose weights follow each other, each has panels of its own.
    """
    width = width or lanes()
    outputs = len(codes) // num_experts
    if num_experts > 1 and outputs % width:
        codes, scales, zeros = (
            _pad_experts(numbers, num_experts, -outputs % width) for numbers in (codes, scales, zeros)
        )
    inputs = codes.shape[1]
    group = inputs // scales.shape[1]
    part = 16 if group % GROUP and group != inputs else GROUP
    padded = codes if inputs % GROUP == 0 else F.pad(codes, (0, -inputs % GROUP))
    words = padded.contiguous().view(torch.int32)
    parts = words.shape[1] * _QUAD // part
    panels = torch.empty(-(-len(codes) // width), parts, part // _QUAD * bits // 8, width, dtype=torch.int32)
    _pack(len(panels), True, words, bits == 4, panels)
    is_half = all(torch.equal(numbers.half().float(), numbers) for numbers in (scales, zeros))

    def of_groups(numbers: Tensor) -> Argument:
        turned = F.pad(numbers, (0, 0, 0, -len(numbers) % width)).view(-1, width, numbers.shape[1]).transpose(1, 2)
        return describe(turned.contiguous().half() if is_half else turned.contiguous())

    return Packed(
        describe(panels.view(torch.uint8).flatten(2)),
        of_groups(scales),
        of_groups(zeros),
        bits,
        part,
        -(-group // part),
        outputs,
        width,
        2 if is_half else 4,
    )


def _pad_experts(numbers: Tensor, num_experts: int, rows: int) -> Tensor:
    """Some rows more for each expert."""
    return F.pad(numbers.unflatten(0, (num_experts, -1)), (0, 0, 0, rows)).flatten(0, 1)


class Rows(NamedTuple):
    """Activations as the kernel reads them; see `_product`."""

    x: Tensor
    factors: Tensor
    sums: Tensor


def quantize_rows(x: Tensor, part: int, routes: Routes | None = None) -> Rows:
    """Activations (rows, inputs) in whole numbers, for weights with parts of this size.

    With routes, the result has a row for each pair, one expert after the other, of which x has a row, or of its token.
    """
    rows, inputs = len(x) if routes is None else routes.num_pairs, x.shape[1]
    pairs, every = (_no_places(), 0) if routes is None else (routes.pairs, rows // len(x))
    x = x if x.stride(1) == 1 else x.contiguous()
    padded = -(-inputs // GROUP) * GROUP
    q = torch.empty(rows, padded, dtype=torch.int8)
    factors, sums = torch.empty(2, rows, padded // part, dtype=torch.float32)
    _quantize(rows, q.numel() >= _WORTH_A_THREAD, x, pairs, every, part, q, factors, sums)
    return Rows(q, factors, sums)


@cache
def _no_places() -> Argument:
    return describe(np.zeros(1, np.int32))


@lru_cache
def _all_of_one(rows: int) -> Argument:
    """How many rows each of one expert has."""
    return describe(np.array([rows], np.int32))


def multiply(
    weight: Packed, rows: Rows, bias: Tensor | None, first: int, out: Tensor, routes: Routes | None = None
) -> None:
    """Fill the columns of out (rows, outputs) from `first` on with the product of the rows and a weight.

    The bias is that of all columns of `out`. With routes, `out` has a row for each pair, in their order, and the
    rows of activations are those of `quantize_rows`.
    """
    if not len(out):
        return
    run = _product(weight.width, weight.bits, weight.part, weight.scale_bytes)
    added = rows.factors[0] if bias is None else constant(bias)
    panels = -(-weight.outputs // weight.width)
    counts, places = (_all_of_one(len(out)), _no_places()) if routes is None else (routes.counts, routes.pairs)
    run(
        panels, True, weight.codes, weight.scales, weight.zeros, *rows, weight.step, added, bias is not None, first,
        weight.outputs, counts, places, routes is not None, out,
    )  # fmt: skip


@kernel
def _take_rows(begin, end, codes, scales, zeros, in_halves, part, step, at, out):  # type: ignore[no-untyped-def]
    width, quads = scales.shape[2], part // (2 * _QUAD if in_halves else _QUAD)
    for row in range(begin, end):
        panel, lane = at[row] // width, at[row] % width
        for i in range(out.shape[1]):
            of_part, quad = codes[panel, i // part], i % part // _QUAD
            code = np.int32(of_part[(quad % quads * width + lane) * _QUAD + i % _QUAD])
            if in_halves:
                code = code >> 4 if quad >= quads else code & 15
            group = i // part // step
            scale, zero = of_half(scales[panel, group, lane]), of_half(zeros[panel, group, lane])
            out[row, i] = from_float(scale * np.float32(code) + zero, out)


def take_rows(weight: Packed, inputs: int, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `at` (n,) of a weight with so many inputs, as numbers (n, inputs)."""
    out = torch.empty(len(at), inputs, dtype=dtype)
    of_weight = weight.codes, weight.scales, weight.zeros, weight.bits == 4, weight.part, weight.step
    _take_rows(len(out), out.numel() >= _WORTH_A_THREAD, *of_weight, at, out)
    return out
