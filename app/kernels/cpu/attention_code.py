"""The inner loops of attention, over one block of K or V, for some query rows at a time.

A row's sums have an order of their own, whatever rows are beside it: along a head's dimensions, and from position to
position. So a token's attention is the same to the last bit in a prompt, in a decode, alone, and in a crowd.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emitter import F32, Emitter


@intrinsic(prefer_literal=True)
def scores_of_block(_context, rows, block_size, addresses, keys):  # type: ignore[no-untyped-def]
    """Dot products of `rows` queries with the keys of a block. Rows and the size of a block are compiled in.

    The addresses are of the queries, float32, and how many bytes apart rows are; of the keys (head_dim, block_size),
    which are of the kind of the array `keys`, and head_dim; and of the scores (rows, block_size) float32, and how many
    bytes apart rows are.
    """
    num_rows, lanes = rows.literal_value, block_size.literal_value
    is_bfloat16, size = keys.dtype == types.uint16, keys.dtype.bitwidth // 8

    def generate(target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        queries, ld_queries, block, head_dim, scores, ld_scores = cgutils.unpack_tuple(builder, arguments[2], 6)
        code = Emitter(builder, lanes)
        zeros = ir.Constant(code.floats, [0.0] * lanes)
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(num_rows)]
        with cgutils.for_range(builder, head_dim) as loop:
            key = code.load_floats(block, code.times(loop.index, lanes * size), is_bfloat16)
            for row, total in enumerate(sums):
                at = builder.add(code.times(ld_queries, row), code.times(loop.index, 4))
                query = code.spread(code.load(F32, queries, at))
                builder.store(code.fma(query, key, builder.load(total)), total)
        for row, total in enumerate(sums):
            code.store(builder.load(total), scores, code.times(ld_scores, row))
        return target.get_dummy_value()

    return types.void(rows, block_size, addresses, keys), generate


@intrinsic(prefer_literal=True)
def add_values_of_block(_context, rows, dims, addresses, values):  # type: ignore[no-untyped-def]
    """Add the weighted values of a block to the results of `rows` queries, `dims` dimensions at a time: both are
    compiled in.

    The addresses are of the weights (rows, positions) float32, and how many bytes apart rows are; of the values of the
    first of these positions, which are of the kind of the array `values`, how many bytes apart positions are, and how
    many positions there are; of the results float32, and how many bytes apart rows are; and how many times `dims` there
    are dimensions.
    """
    num_rows, lanes = rows.literal_value, dims.literal_value
    is_bfloat16, size = values.dtype == types.uint16, values.dtype.bitwidth // 8

    def generate(target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        places = cgutils.unpack_tuple(builder, arguments[2], 8)
        weights, ld_weights, block, ld_values, count, results, ld_results, slices = places
        code = Emitter(builder, lanes)
        sums = [cgutils.alloca_once(builder, code.floats) for _ in range(num_rows)]
        with cgutils.for_range(builder, slices) as part:
            result = builder.add(results, code.times(part.index, 4 * lanes))
            of_slice = builder.add(block, code.times(part.index, size * lanes))
            for row, total in enumerate(sums):
                builder.store(code.load(code.floats, result, code.times(ld_results, row)), total)
            with cgutils.for_range(builder, count) as loop:
                value = code.load_floats(of_slice, builder.mul(loop.index, ld_values), is_bfloat16)
                for row, total in enumerate(sums):
                    at = builder.add(code.times(ld_weights, row), code.times(loop.index, 4))
                    weight = code.spread(code.load(F32, weights, at))
                    builder.store(code.fma(weight, value, builder.load(total)), total)
            for row, total in enumerate(sums):
                code.store(builder.load(total), result, code.times(ld_results, row))
        return target.get_dummy_value()

    return types.void(rows, dims, addresses, values), generate
