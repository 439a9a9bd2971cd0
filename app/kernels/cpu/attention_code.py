"""The inner loops of attention, over one block of K or V, for some query rows at a time.

A row's sums have an order of their own, whatever rows are beside it: along a head's dimensions, and from position to
position. So a token's attention is the same to the last bit in a prompt, in a decode, alone, and in a crowd.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emitter import F32, I64, Emitter

_ROWS = (8, 4, 2, 1)
"""How many rows are computed together, so that K and V are read once for all of them: as many as are left."""


def _some_rows(builder: ir.IRBuilder, rows: Any, emit: Callable[[Any, int], None]) -> None:
    """Emit code for all of some rows: `emit` gets the first row and how many there are."""
    first: Any = ir.Constant(I64, 0)
    for size in _ROWS:
        width = ir.Constant(I64, size)
        count = builder.udiv(builder.sub(rows, first), width)
        with cgutils.for_range(builder, count) as loop:
            emit(builder.add(first, builder.mul(loop.index, width)), size)
        first = builder.add(first, builder.mul(count, width))


def _add_products(code: Emitter, sums: list[Any], factors: Any, ld_factors: Any, at: Any, vector: Any) -> None:
    """Add to each row's sum its factor number `at`, of factors (rows, ...) float32, times a vector."""
    for row, total in enumerate(sums):
        place = code.b.add(code.times(ld_factors, row), code.times(at, 4))
        factor = code.spread(code.load(F32, factors, place))
        code.b.store(code.fma(factor, vector, code.b.load(total)), total)


@intrinsic(prefer_literal=True)
def scores_of_block(_context, block_size, addresses, keys):  # type: ignore[no-untyped-def]
    """Dot products of queries with the keys of a block, whose size is compiled in.

    First there is the number of queries. The addresses are of the queries, float32, and how many bytes apart rows are;
    of the keys (head_dim, block_size), which are of the kind of the array `keys`, and head_dim; of the scale of each
    key, float32, if keys are whole numbers; and of the scores (rows, block_size) float32, and how many bytes apart rows
    are.
    """
    lanes, size = block_size.literal_value, keys.dtype.bitwidth // 8

    def generate(target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        places = cgutils.unpack_tuple(builder, arguments[1], 8)
        rows, queries, ld_queries, block, head_dim, scales, scores, ld_scores = places
        code = Emitter(builder, lanes)
        zeros = ir.Constant(code.floats, [0.0] * lanes)

        def of_rows(first: Any, count: int) -> None:
            of_queries = builder.add(queries, builder.mul(first, ld_queries))
            to = builder.add(scores, builder.mul(first, ld_scores))
            sums = [cgutils.alloca_once(builder, code.floats) for _ in range(count)]
            for total in sums:
                builder.store(zeros, total)
            with cgutils.for_range(builder, head_dim) as loop:
                key = code.load_floats(block, code.times(loop.index, lanes * size), keys.dtype)
                _add_products(code, sums, of_queries, ld_queries, loop.index, key)
            for row, total in enumerate(sums):
                score = builder.load(total)
                if keys.dtype == types.int8:
                    score = builder.fmul(score, code.load(code.floats, scales))
                code.store(score, to, code.times(ld_scores, row))

        _some_rows(builder, rows, of_rows)
        return target.get_dummy_value()

    return types.void(block_size, addresses, keys), generate


@intrinsic(prefer_literal=True)
def add_values_of_block(_context, dims, addresses, values):  # type: ignore[no-untyped-def]
    """Add the weighted values of a block to results, `dims` dimensions at a time, which is compiled in.

    First there is the number of rows. The addresses are of the weights (rows, positions) float32, and how many bytes
    apart rows are; of the values of the first of these positions, which are of the kind of the array `values`, how many
    bytes apart positions are, and how many positions there are; of the scale of each position, float32, if values are
    whole numbers; of the results float32, and how many bytes apart rows are; and how many times `dims` there are
    dimensions.
    """
    lanes, size = dims.literal_value, values.dtype.bitwidth // 8

    def generate(target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        places = cgutils.unpack_tuple(builder, arguments[1], 10)
        rows, weights, ld_weights, block, ld_values, count, scales, results, ld_results, slices = places
        code = Emitter(builder, lanes)

        def of_rows(first: Any, num_rows: int) -> None:
            of_weights = builder.add(weights, builder.mul(first, ld_weights))
            sums = [cgutils.alloca_once(builder, code.floats) for _ in range(num_rows)]
            with cgutils.for_range(builder, slices) as part:
                result = builder.add(results, builder.mul(first, ld_results))
                result = builder.add(result, code.times(part.index, 4 * lanes))
                of_slice = builder.add(block, code.times(part.index, size * lanes))
                for row, total in enumerate(sums):
                    builder.store(code.load(code.floats, result, code.times(ld_results, row)), total)
                with cgutils.for_range(builder, count) as loop:
                    value = code.load_floats(of_slice, builder.mul(loop.index, ld_values), values.dtype)
                    if values.dtype == types.int8:
                        scale = code.load(F32, scales, code.times(loop.index, 4))
                        value = builder.fmul(value, code.spread(scale))
                    _add_products(code, sums, of_weights, ld_weights, loop.index, value)
                for row, total in enumerate(sums):
                    code.store(builder.load(total), result, code.times(ld_results, row))

        _some_rows(builder, rows, of_rows)
        return target.get_dummy_value()

    return types.void(dims, addresses, values), generate
