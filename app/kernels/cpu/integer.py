"""Products of activations with weights that are small whole numbers, computed in whole numbers.

A row of activations is quantized to 8 bits in groups of 32, each with its largest number as 127. The dot product of a
part (of 32 inputs, or of 16 where a group has no more) is exact, since it is a sum of whole numbers. Scales are applied
to it in float32, one part after the other. So a row's result depends neither on the rows beside it nor on how they are
cut into tiles.

The inner loop is written as vector instructions of AVX2, because LLVM does not find them: `vpmaddubsw` multiplies
unsigned by signed bytes and adds pairs of products in 16 bits, which nibbles cannot overflow. A code of 8 bits is two
nibbles.
"""

from functools import cache, lru_cache
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from .numerics import WORTH_A_THREAD, array, constant, from_float, inline, kernel, to_float

GROUP = 32
"""Activations that share a scale."""
LANES = 8
"""Outputs of a panel: they are computed together, one in each lane of a vector."""
TILE = 4
"""Rows that are computed together, so that a panel's codes are unpacked once for all of them."""

_I8, _I16, _I32, _I64 = (ir.IntType(size) for size in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_BYTES = ir.VectorType(_I8, 32)


class _Code:
    """Emits the loop over all groups for a panel of outputs and a tile of rows."""

    def __init__(self, builder: ir.IRBuilder, bits: int, part: int, rows: int) -> None:
        self.b = builder
        self.bits = bits
        self.part = part
        self.rows = rows

    def _intrinsic(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), arguments)

    def load(self, kind: ir.Type, base: Any, offset: Any) -> Any:
        """A value at an address that is `offset` bytes from another, with any alignment."""
        if isinstance(offset, int):
            offset = ir.Constant(_I64, offset)
        value = self.b.load(self.b.inttoptr(self.b.add(base, offset), kind.as_pointer()))
        value.align = 1
        return value

    def spread(self, value: Any, count: int) -> Any:
        """A vector with the same value in all lanes."""
        kind = ir.VectorType(value.type, count)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_I32, count), [0] * count)
        )

    def dots(self, codes: Any, x: Any, ld_x: Any) -> list[Any]:
        """For each row, the dot products of a part with the eight outputs: <8 x i32>.

        Sums of nibbles times activations stay in 16 bits: 2 * 4 * 15 * 127 < 2**15.
        """
        b, words16 = self.b, ir.VectorType(_I16, 16)
        low: list[Any] = [None] * self.rows
        high: list[Any] = [None] * self.rows
        num_vectors = self.part * self.bits // 32
        for vector in range(num_vectors):
            packed = self.load(_BYTES, codes, 32 * vector)
            nibbles = b.and_(packed, ir.Constant(_BYTES, [15] * 32)), b.lshr(packed, ir.Constant(_BYTES, [4] * 32))
            # With 4 bits the upper nibbles are codes of other inputs; with 8 they belong to the same code.
            quads = (vector, vector + num_vectors) if self.bits == 4 else (vector, vector)
            for row in range(self.rows):
                at = b.mul(ld_x, ir.Constant(_I64, row))
                for sums, codes_of, quad in zip((low, low if self.bits == 4 else high), nibbles, quads, strict=True):
                    four = self.load(_I32, x, b.add(at, ir.Constant(_I64, 4 * quad)))
                    numbers = b.bitcast(self.spread(four, LANES), _BYTES)
                    pairs = self._intrinsic("llvm.x86.avx2.pmadd.ub.sw", words16, codes_of, numbers)
                    sums[row] = pairs if sums[row] is None else b.add(sums[row], pairs)
        total = [self._sum_of_pairs(sums, 1) for sums in low]
        if self.bits == 4:
            return total
        return [b.add(one, self._sum_of_pairs(two, 16)) for one, two in zip(total, high, strict=True)]

    def _sum_of_pairs(self, sums: Any, factor: int) -> Any:
        """Sums of neighbours <16 x i16>, times a factor: <8 x i32>."""
        factors = ir.Constant(ir.VectorType(_I16, 16), [factor] * 16)
        return self._intrinsic("llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, LANES), sums, factors)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._intrinsic("llvm.fma.v8f32", ir.VectorType(_F32, 8), a, b, c)


@intrinsic(prefer_literal=True)
def _tile(_context, bits, part, scale_bytes, rows, addresses):  # type: ignore[no-untyped-def]
    """One panel for `rows` rows. The first arguments are compiled in; see `_product` for what the addresses are of."""
    bits_of_code, inputs, size, num_rows = (kind.literal_value for kind in (bits, part, scale_bytes, rows))
    number = _F16 if size == 2 else _F32

    def generate(_target, builder, signature, arguments):  # type: ignore[no-untyped-def]
        places = cgutils.unpack_tuple(builder, arguments[4], len(signature.args[4]))
        codes, scales, zeros, x, ld_x, factors, sums, parts, step, out = places
        code = _Code(builder, bits_of_code, inputs, num_rows)
        floats = ir.VectorType(_F32, LANES)
        nothing = ir.Constant(floats, [0.0] * LANES)
        accumulators = [cgutils.alloca_once_value(builder, nothing) for _ in range(num_rows)]

        def times(value: Any, factor: int) -> Any:
            return builder.mul(value, ir.Constant(_I64, factor))

        with cgutils.for_range(builder, parts) as loop:
            index = loop.index
            of_part = builder.add(codes, times(index, inputs * LANES * bits_of_code // 8))
            dots = code.dots(of_part, builder.add(x, times(index, inputs)), ld_x)
            at_scale = times(builder.udiv(index, step), LANES * size)
            scale, zero = (code.load(ir.VectorType(number, LANES), base, at_scale) for base in (scales, zeros))
            if size == 2:
                scale, zero = (builder.fpext(value, floats) for value in (scale, zero))
            for row in range(num_rows):
                at = builder.add(times(parts, 4 * row), times(index, 4))
                factor, total = (code.spread(code.load(_F32, base, at), LANES) for base in (factors, sums))
                value = builder.fmul(builder.sitofp(dots[row], floats), factor)
                value = code.fma(scale, value, builder.load(accumulators[row]))
                builder.store(code.fma(zero, total, value), accumulators[row])
        for row in range(num_rows):
            place = builder.add(out, ir.Constant(_I64, 4 * LANES * row))
            builder.store(builder.load(accumulators[row]), builder.inttoptr(place, floats.as_pointer())).align = 1
        return _target.get_dummy_value()

    return types.void(bits, part, scale_bytes, rows, addresses), generate


@lru_cache
def _product(bits: int, part: int, scale_bytes: int) -> Any:
    """The kernel for one form of weights. It takes

    - codes (panels, parts, bytes) uint8; scales and zeros (panels, groups, LANES), float32, or float16 as uint16,
    - x (rows, inputs) int8; factors and sums (rows, parts) float32: what a part's whole numbers are to be multiplied
      by, and what the part adds up to,
    - step: parts of a group,
    - bias (all outputs,), and whether there is one,
    - out (rows, all outputs), float32 or as bfloat16 is kept, of which it fills `outputs` columns from `first` on.
    """

    @kernel
    def run(codes, scales, zeros, x, factors, sums, step, bias, has_bias, first, outputs, out):  # type: ignore[no-untyped-def]
        rows, parts = out.shape[0], codes.shape[1]
        for panel in prange(codes.shape[0]):
            results = np.empty((TILE, LANES), np.float32)
            of_panel = codes[panel].ctypes.data, scales[panel].ctypes.data, zeros[panel].ctypes.data
            begin, row = panel * LANES, 0
            while row < rows:
                count = TILE if rows - row >= TILE else 1
                of_rows = x[row].ctypes.data, x.shape[1], factors[row].ctypes.data, sums[row].ctypes.data
                addresses = (*of_panel, *of_rows, parts, step, results.ctypes.data)
                if count == TILE:
                    _tile(bits, part, scale_bytes, TILE, addresses)  # type: ignore[call-arg]
                else:
                    _tile(bits, part, scale_bytes, 1, addresses)  # type: ignore[call-arg]
                for r in range(count):
                    for lane in range(min(LANES, outputs - begin)):
                        value = results[r, lane]
                        column = first + begin + lane
                        if has_bias:
                            value += to_float(bias[column])
                        out[row + r, column] = from_float(value, out)
                row += count

    return run


@inline
def _quantize_row(x, part, q, factors, sums):  # type: ignore[no-untyped-def]
    for begin in range(0, x.shape[0], GROUP):
        end = min(begin + GROUP, x.shape[0])
        largest, nothing = np.float32(0), np.float32(0)
        for i in range(begin, end):
            value = to_float(x[i])
            largest = max(largest, abs(value))
            nothing += value * np.float32(0)  # not a number if one of them is none, or infinite
        factor = largest / np.float32(127)
        inverse = np.float32(1) / factor if factor > np.float32(1e-35) else np.float32(0)
        for i in range(begin, end):
            q[i] = np.int8(np.rint(to_float(x[i]) * inverse))
        for i in range(end, begin + GROUP):
            q[i] = 0
        for at in range(begin // part, (begin + GROUP) // part):
            total = np.int32(0)
            for i in range(at * part, (at + 1) * part):
                total += np.int32(q[i])
            factors[at] = factor + nothing
            sums[at] = factor * np.float32(total) + nothing


@kernel
def _quantize(x, part, q, factors, sums):  # type: ignore[no-untyped-def]
    if x.size < WORTH_A_THREAD:
        for row in range(x.shape[0]):
            _quantize_row(x[row], part, q[row], factors[row], sums[row])
    else:
        for row in prange(x.shape[0]):
            _quantize_row(x[row], part, q[row], factors[row], sums[row])


class Packed(NamedTuple):
    """A weight in the order in which the kernel reads it."""

    codes: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any]
    bits: int
    part: int
    """Inputs whose whole numbers are added up before a scale is applied: 16 or 32."""
    step: int
    """Parts of a group."""
    outputs: int


@cache
def can_run() -> bool:
    """Whether this processor has the kernel's instructions."""
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know how to ask it
        return False
    return bool(features.get("avx2") and features.get("fma") and features.get("f16c"))


def can_pack(in_features: int, group: int) -> bool:
    """Whether the kernel takes groups of this size."""
    return group % 16 == 0 or group == in_features


def pack(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Packed:
    """Bring codes (outputs, inputs) with scales and zeros (outputs, groups) into panels.

    A panel has, for four neighbouring inputs at a time, the codes of eight outputs. With 4 bits a byte holds two codes:
    the lower one is of the first half of a part.
    """
    outputs, inputs = codes.shape
    group = inputs // scales.shape[1]
    part = 16 if group % GROUP and group != inputs else GROUP
    padding = (0, -inputs % GROUP, 0, -outputs % LANES)
    # (panels, LANES, parts, quads, 4) to (panels, parts, quads, LANES, 4)
    panels = F.pad(codes, padding).view(-1, LANES, -(-inputs // GROUP) * GROUP // part, part // 4, 4)
    panels = panels.permute(0, 2, 3, 1, 4)
    if bits == 4:
        half = part // 8
        panels = panels[:, :, :half] | panels[:, :, half:] << 4
    is_half = all(torch.equal(numbers.half().float(), numbers) for numbers in (scales, zeros))

    def of_groups(numbers: Tensor) -> NDArray[Any]:
        turned = F.pad(numbers, (0, 0, 0, -outputs % LANES)).view(-1, LANES, numbers.shape[1]).transpose(1, 2)
        return (turned.contiguous().half().view(torch.uint16) if is_half else turned.contiguous()).numpy()

    return Packed(
        panels.flatten(2).contiguous().numpy(),
        of_groups(scales),
        of_groups(zeros),
        bits,
        part,
        -(-group // part),
        outputs,
    )


class Rows(NamedTuple):
    """Activations as the kernel reads them; see `_product`."""

    x: NDArray[Any]
    factors: NDArray[Any]
    sums: NDArray[Any]


def quantize_rows(x: Tensor, part: int) -> Rows:
    """Activations (rows, inputs) in whole numbers, for weights with parts of this size."""
    rows, inputs = x.shape
    padded = -(-inputs // GROUP) * GROUP
    q, factors = np.empty((rows, padded), np.int8), np.empty((2, rows, padded // part), np.float32)
    _quantize(array(x), part, q, factors[0], factors[1])
    return Rows(q, factors[0], factors[1])


def multiply(weight: Packed, rows: Rows, bias: Tensor | None, first: int, out: Tensor) -> None:
    """Fill the columns of out (rows, outputs) from `first` on with the product of the rows and a weight.

    The bias is that of all columns of `out`.
    """
    run = _product(weight.bits, weight.part, weight.scales.itemsize)
    added = rows.factors[0] if bias is None else constant(bias)
    run(
        weight.codes, weight.scales, weight.zeros, *rows, weight.step, added, bias is not None, first, weight.outputs,
        array(out),
    )  # fmt: skip
