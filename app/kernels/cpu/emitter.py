"""What vector instructions are written with: LLVM makes those of the processor of them.

A kernel's inner loop is written so where the order of its sums matters, or where LLVM does not find the instructions by
itself.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(size) for size in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class Emitter:
    """Writes code for vectors of some number of lanes. Addresses are whole numbers of 64 bits."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.b = builder
        self.lanes = lanes
        self.words = ir.VectorType(I32, lanes)
        self.floats = ir.VectorType(F32, lanes)

    def intrinsic(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), arguments)

    def at(self, base: Any, offset: Any) -> Any:
        """The address that is `offset` bytes from another."""
        return self.b.add(base, ir.Constant(I64, offset) if isinstance(offset, int) else offset)

    def times(self, value: Any, factor: int) -> Any:
        return self.b.mul(value, ir.Constant(I64, factor))

    def load(self, kind: ir.Type, base: Any, offset: Any = 0) -> Any:
        """A value, with any alignment."""
        value = self.b.load(self.b.inttoptr(self.at(base, offset), kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, base: Any, offset: Any = 0) -> None:
        """Write a value, with any alignment."""
        self.b.store(value, self.b.inttoptr(self.at(base, offset), value.type.as_pointer())).align = 1

    def prefetch(self, base: Any, offset: int) -> None:
        """Have a cache line read from memory that is needed soon."""
        address = self.b.inttoptr(self.at(base, offset), I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        to_read, for_long, data = (ir.Constant(I32, number) for number in (0, 3, 1))
        self.b.call(
            cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0i8"),
            [address, to_read, for_long, data],
        )

    def load_floats(self, base: Any, offset: Any, kind: types.Type) -> Any:
        """Numbers of an array's kind as `floats`; bfloat16, kept as uint16, is the upper half of a float32."""
        if kind == types.float32:
            return self.load(self.floats, base, offset)
        if kind == types.int8:
            return self.b.sitofp(self.load(ir.VectorType(I8, self.lanes), base, offset), self.floats)
        halves = self.load(ir.VectorType(I16, self.lanes), base, offset)
        sixteen = ir.Constant(self.words, [16] * self.lanes)
        return self.b.bitcast(self.b.shl(self.b.zext(halves, self.words), sixteen), self.floats)

    def spread(self, value: Any) -> Any:
        """A vector with the same value in all lanes."""
        kind = ir.VectorType(value.type, self.lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(self.words, [0] * self.lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """`a * b + c`, rounded once."""
        return self.intrinsic(f"llvm.fma.v{self.lanes}f32", self.floats, a, b, c)

    def rounded(self, value: Any) -> Any:
        """Floats as bfloat16 is kept, rounded to the nearest, and to even between two."""
        one, sixteen, half = (ir.Constant(self.words, [number] * self.lanes) for number in (1, 16, 0x7FFF))
        bits = self.b.bitcast(value, self.words)
        odd = self.b.and_(self.b.lshr(bits, sixteen), one)
        upper = self.b.lshr(self.b.add(self.b.add(bits, half), odd), sixteen)
        return self.b.trunc(upper, ir.VectorType(I16, self.lanes))
