"""Vector instructions for products of whole numbers, which LLVM does not find by itself.

Two instruction sets are known. `vpdpbusd` of AVX512-VNNI multiplies unsigned by signed bytes and adds four products
to a sum of 32 bits. `vpmaddubsw` of AVX2 adds two products in 16 bits: these overflow with codes of 8 bits, but not
with nibbles, and a code of 8 bits is two nibbles.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emitter import F16, F32, I8, I16, I32, I64, Emitter

llvmlite.binding.initialize_native_asmparser()  # LLVM reads the one instruction that is written as text with it


_CACHE_LINE = 64
_AHEAD = 4096
"""Bytes between the codes that are multiplied and those that are fetched from memory. The processor fetches ahead by
itself, but no further than a page of memory, of which a core reads one in half a microsecond."""


class _Code(Emitter):
    """Emits what all instruction sets share. A panel is as many outputs as a vector has lanes, one in each."""

    lanes: int

    def __init__(self, builder: ir.IRBuilder, bits: int, part: int, rows: int) -> None:
        super().__init__(builder, self.lanes)
        self.bits = bits
        self.part = part
        self.rows = rows
        self.bytes = ir.VectorType(I8, 4 * self.lanes)

    def fetch_ahead(self, codes: Any) -> None:
        """Have the memory send what lies `_AHEAD` bytes behind the codes of a part; beyond the end, nothing happens."""
        size = self.part * self.lanes * self.bits // 8
        for line in range(0, size, _CACHE_LINE):
            self.prefetch(codes, _AHEAD + line)

    def nibbles(self, packed: Any) -> tuple[Any, Any]:
        """The lower and the upper halves of bytes."""
        low, four = (ir.Constant(self.bytes, [number] * 4 * self.lanes) for number in (15, 4))
        return self.b.and_(packed, low), self.b.lshr(packed, four)

    def dots(self, codes: Any, x: Any, ld_x: Any) -> list[Any]:
        """For each row, the dot products of a part with the panel's outputs: `words`."""
        raise NotImplementedError


class _Vnni(_Code):
    lanes = 16

    def dots(self, codes: Any, x: Any, ld_x: Any) -> list[Any]:
        sums = [ir.Constant(self.words, [0] * self.lanes)] * self.rows
        num_vectors = self.part * self.bits // 32
        for vector in range(num_vectors):
            packed = self.load(self.bytes, codes, 4 * self.lanes * vector)
            # With 4 bits, the upper nibbles are codes of other inputs.
            parts = self.nibbles(packed) if self.bits == 4 else (packed,)
            for place, codes_of in enumerate(parts):
                for row in range(self.rows):
                    of_row = self.b.add(x, self.b.mul(ld_x, ir.Constant(I64, row)))
                    quad = vector + place * num_vectors
                    sums[row] = self._add_products(sums[row], self.b.bitcast(codes_of, self.words), of_row, quad)
        return sums

    def _add_products(self, sums: Any, codes: Any, of_row: Any, quad: int) -> Any:
        """`vpdpbusd`, which reads four activations from memory and spreads them itself.

        Given the intrinsic function, LLVM loads all activations of a part beforehand and runs out of registers, which
        takes twice as long.
        """
        kind = ir.FunctionType(self.words, [self.words, self.words, I64])
        code = f"vpdpbusd {4 * quad}($3){{1to16}}, $2, $0"
        return self.b.asm(kind, code, "=v,0,v,r", (sums, codes, of_row), False)


class _Avx2(_Code):
    lanes = 8

    def dots(self, codes: Any, x: Any, ld_x: Any) -> list[Any]:
        """Sums of nibbles times activations stay in 16 bits: 2 * 4 * 15 * 127 < 2**15."""
        low: list[Any] = [None] * self.rows
        high: list[Any] = [None] * self.rows
        num_vectors = self.part * self.bits // 32
        for vector in range(num_vectors):
            packed = self.load(self.bytes, codes, 4 * self.lanes * vector)
            # With 4 bits, the upper nibbles are codes of other inputs; with 8 they belong to the same code.
            quads = (vector, vector + num_vectors) if self.bits == 4 else (vector, vector)
            for row in range(self.rows):
                halves = (low, low if self.bits == 4 else high)
                for sums, codes_of, quad in zip(halves, self.nibbles(packed), quads, strict=True):
                    numbers = self._quad(x, ld_x, row, quad)
                    kind = ir.VectorType(I16, 2 * self.lanes)
                    pairs = self.intrinsic("llvm.x86.avx2.pmadd.ub.sw", kind, codes_of, numbers)
                    sums[row] = pairs if sums[row] is None else self.b.add(sums[row], pairs)
        total = [self._sum_of_pairs(sums, 1) for sums in low]
        if self.bits == 4:
            return total
        return [self.b.add(one, self._sum_of_pairs(two, 16)) for one, two in zip(total, high, strict=True)]

    def _quad(self, x: Any, ld_x: Any, row: int, index: int) -> Any:
        """Four neighbouring activations of a row, in all lanes: bytes."""
        at = self.at(self.times(ld_x, row), 4 * index)
        return self.b.bitcast(self.spread(self.load(I32, x, at)), self.bytes)

    def _sum_of_pairs(self, sums: Any, factor: int) -> Any:
        """Sums of neighbours, times a factor: `words`."""
        factors = ir.Constant(ir.VectorType(I16, 2 * self.lanes), [factor] * 2 * self.lanes)
        return self.intrinsic("llvm.x86.avx2.pmadd.wd", self.words, sums, factors)


_BY_LANES = {kind.lanes: kind for kind in (_Vnni, _Avx2)}


def lanes_of_processor() -> list[int]:
    """Outputs of a panel for each of the instruction sets that this processor has, the fastest first."""
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know how to ask it
        return []
    wanted = {_Vnni.lanes: ("avx512f", "avx512bw", "avx512vnni"), _Avx2.lanes: ("avx2", "fma", "f16c")}
    return [lanes for lanes, names in wanted.items() if all(features.get(name) for name in names)]


@intrinsic(prefer_literal=True)
def tile(_context, lanes, bits, part, scale_bytes, rows, addresses, results):  # type: ignore[no-untyped-def]
    """One panel of a product for `rows` rows. All arguments but the last two are compiled in.

    The addresses are of codes, scales and zeros of the panel; of the rows' first whole number, and how many bytes apart
    rows are; of their factors and sums; then there are the number of parts and the parts of a group; the address of
    what is added to each output, float32; and that of the results, which are of the kind of the array `results`, and
    how many bytes apart their rows are. See `app.kernels.cpu.integer`.
    """
    num_lanes, bits_of_code, inputs, size, num_rows = (
        kind.literal_value for kind in (lanes, bits, part, scale_bytes, rows)
    )
    number = F16 if size == 2 else F32

    def generate(_target, builder, signature, arguments):  # type: ignore[no-untyped-def]
        places = cgutils.unpack_tuple(builder, arguments[5], len(signature.args[5]))
        codes, scales, zeros, x, ld_x, factors, sums, parts, step, added, out, ld_out = places
        code = _BY_LANES[num_lanes](builder, bits_of_code, inputs, num_rows)
        start = code.load(code.floats, added, 0)
        accumulators = [cgutils.alloca_once(builder, code.floats) for _ in range(num_rows)]
        for accumulator in accumulators:
            builder.store(start, accumulator)

        with cgutils.for_range(builder, parts) as loop:
            index = loop.index
            of_part = builder.add(codes, code.times(index, inputs * num_lanes * bits_of_code // 8))
            code.fetch_ahead(of_part)
            dots = code.dots(of_part, builder.add(x, code.times(index, inputs)), ld_x)
            at_scale = code.times(builder.udiv(index, step), num_lanes * size)
            scale, zero = (code.load(ir.VectorType(number, num_lanes), base, at_scale) for base in (scales, zeros))
            if size == 2:
                scale, zero = (builder.fpext(value, code.floats) for value in (scale, zero))
            for row in range(num_rows):
                at = builder.add(code.times(parts, 4 * row), code.times(index, 4))
                factor, total = (code.spread(code.load(F32, base, at)) for base in (factors, sums))
                value = builder.fmul(builder.sitofp(dots[row], code.floats), factor)
                value = code.fma(scale, value, builder.load(accumulators[row]))
                builder.store(code.fma(zero, total, value), accumulators[row])
        for row in range(num_rows):
            value = builder.load(accumulators[row])
            value = code.rounded(value) if results.dtype == types.uint16 else value
            code.store(value, out, code.times(ld_out, row))
        return _target.get_dummy_value()

    return types.void(lanes, bits, part, scale_bytes, rows, addresses, results), generate


@intrinsic(prefer_literal=True)
def quantize_group(_context, count, part, addresses, numbers):  # type: ignore[no-untyped-def]
    """Quantize `count` activations to 8 bits, with their largest as 127; count and part are compiled in.

    The addresses are of the activations, which are of the kind of the array `numbers`; of the whole numbers; and of the
    factor and the sum of each part, float32. They are no numbers if an activation is none, or infinite.
    """
    size, length = count.literal_value, part.literal_value

    def generate(_target, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, out, factors, sums = cgutils.unpack_tuple(builder, arguments[2], len(signature.args[2]))
        code = Emitter(builder, size)

        def constant(number: float) -> Any:
            return ir.Constant(F32, number)

        x = code.load_floats(source, 0, numbers.dtype)
        # Without their signs, floats have the order of their bits, and what is no number is the largest of all.
        unsigned = builder.and_(builder.bitcast(x, code.words), ir.Constant(code.words, [0x7FFFFFFF] * size))
        largest = builder.bitcast(code.intrinsic(f"llvm.vector.reduce.umax.v{size}i32", I32, unsigned), F32)
        factor = builder.fdiv(largest, constant(127.0))
        is_small = builder.fcmp_unordered("<=", factor, constant(1e-35))
        inverse = builder.select(is_small, constant(0.0), builder.fdiv(constant(1.0), factor))
        whole = code.intrinsic(f"llvm.rint.v{size}f32", code.floats, builder.fmul(x, code.spread(inverse)))
        whole = builder.fptosi(whole, code.words)
        code.store(builder.trunc(whole, ir.VectorType(I8, size)), out, 0)
        factor = builder.fadd(factor, builder.fmul(largest, constant(0.0)))  # infinity becomes no number
        for at in range(size // length):
            of_part = ir.Constant(ir.VectorType(I32, length), list(range(at * length, (at + 1) * length)))
            summed = builder.shuffle_vector(whole, whole, of_part)
            total = code.intrinsic(f"llvm.vector.reduce.add.v{length}i32", I32, summed)
            code.store(factor, factors, 4 * at)
            code.store(builder.fmul(factor, builder.sitofp(total, F32)), sums, 4 * at)
        return _target.get_dummy_value()

    return types.void(count, part, addresses, numbers), generate
