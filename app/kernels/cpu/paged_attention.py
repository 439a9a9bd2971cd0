"""Attention that reads K and V directly from the blocks: of decodes, and of chunks of prompts in tiles of some tokens.

What a token's attention is depends on the token alone: see `app.kernels.cpu.attention_code`.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from .attention_code import add_values_of_block, scores_of_block
from .kernel import kernel
from .numerics import exp, from_float, inline, to_float

_SLICE = 16
"""Dimensions of V, or scores, that are computed together."""


@inline
def _first_seen(position, window, chunked):  # type: ignore[no-untyped-def]
    if chunked:
        return position // window * window
    return max(0, position + 1 - window) if window > 0 else 0


@inline
def _softmax(scores, low, high, scale, softcap, sink, bias, head):  # type: ignore[no-untyped-def]
    """Of scores (positions,) from low to before high, and of a sink, in place; others become 0.

    bias (heads, distances), or (0, 0): what is added by the distance from the last of them.
    """
    for i in range(low):
        scores[i] = np.float32(0)
    for i in range(high, scores.shape[0]):
        scores[i] = np.float32(0)
    seen = scores[low:high]
    for i in range(seen.shape[0]):
        seen[i] *= scale
    if softcap > 0:
        for i in range(seen.shape[0]):
            seen[i] = softcap * np.tanh(seen[i] / softcap)
    if bias.shape[0] > 0:
        for i in range(seen.shape[0]):
            seen[i] += bias[head, min(seen.shape[0] - 1 - i, bias.shape[1] - 1)]
    # LLVM makes no vectors of one running maximum, since that of what is no number depends on the order.
    maxima = np.full(_SLICE, max(seen[0], sink))
    whole = seen.shape[0] // _SLICE * _SLICE
    for first in range(0, whole, _SLICE):
        for i in range(_SLICE):
            maxima[i] = max(maxima[i], seen[first + i])
    largest = maxima[0]
    for i in range(_SLICE):
        largest = max(largest, maxima[i])
    for i in range(whole, seen.shape[0]):
        largest = max(largest, seen[i])
    total = exp(sink - largest)
    for i in range(seen.shape[0]):
        weight = exp(seen[i] - largest)
        seen[i] = weight
        total += weight
    factor = np.float32(1) / total
    for i in range(seen.shape[0]):
        seen[i] *= factor


@inline
def _scores_of_block(queries, block, block_size, keys, scales, scores, at):  # type: ignore[no-untyped-def]
    """For all rows of queries, the scores of the block at an address, whose scales are at another, from `at` on.

    Numba frees an array when it is used no more, and knows nothing of addresses: so they are asked for here.
    """
    rows, head_dim = queries.shape
    of_queries, to = queries.ctypes.data, scores.ctypes.data + 4 * at
    addresses = (rows, of_queries, queries.strides[0], block, head_dim, scales, to, scores.strides[0])
    scores_of_block(block_size, addresses, keys)  # type: ignore[call-arg]


@inline
def _add_values(dims, weights, at, block, scales, values, count, results, first, slices):  # type: ignore[no-untyped-def]
    """For all rows, add the weighted values of `count` positions, from dimension `first` on.

    The weights begin at place `at`; values and scales of the first position are at addresses. There are `slices` times
    `dims` dimensions.
    """
    of_weights, of_values = weights.ctypes.data + 4 * at, block + first * values.itemsize
    of_rows = (results.shape[0], of_weights, weights.strides[0])
    to = results.ctypes.data + 4 * first
    addresses = (*of_rows, of_values, values.strides[2], count, scales, to, results.strides[0], slices)
    add_values_of_block(dims, addresses, values)  # type: ignore[call-arg]


@lru_cache
def paged_attention(group: int, head_dim: int, v_head_dim: int, block_size: int) -> Any:
    """The kernel for `group` query heads to each K/V head. Sizes are compiled in.

    There is a task for each tile and K/V head. The kernel takes
    - q (tokens, num_kv_heads * group, head_dim),
    - k_cache (num_kv_heads, num_blocks, head_dim, block_size), v_cache (num_kv_heads, num_blocks, block_size,
      v_head_dim),
    - k_scales and v_scales (num_kv_heads, num_blocks, block_size) float32, which are read if K and V are int8,
    - block_tables (rows, blocks),
    - tiles (tiles, 5): row, first token, number of tokens (0: nothing to do), position of the first token, and the
      position before which each of them sees all (0: each sees itself last),
    - window and whether it is chunked: see `app.attention.config.AttentionConfig`; 0 is none,
    - scale and softcap (0: none), float32,
    - sinks (num_kv_heads * group,), or none: see `app.attention.layer.Attention.forward`,
    - bias (num_kv_heads * group, distances), or (0, 0): see `app.attention.config.LayerCache`,
    - out (tokens, num_kv_heads * group, v_head_dim), which it fills.
    """
    whole, rest = v_head_dim // _SLICE, v_head_dim % _SLICE

    @kernel
    def run(  # type: ignore[no-untyped-def]
        begin,
        end,
        q,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        block_tables,
        tiles,
        window,
        chunked,
        scale,
        softcap,
        sinks,
        bias,
        out,
    ):
        num_tiles = tiles.shape[0]
        for task in range(begin, end):
            # Each thread takes a run of tasks, and long and short tiles stand together: take one of each in turn.
            head, order = task // num_tiles, task % num_tiles
            tile = tiles[order // 2 if order % 2 == 0 else num_tiles - 1 - order // 2]
            table, token, count, position = block_tables[tile[0]], tile[1], tile[2], np.int64(tile[3])
            if count == 0:
                continue
            rows = count * group
            queries = np.empty((rows, head_dim), np.float32)
            for t in range(count):
                for g in range(group):
                    for d in range(head_dim):
                        queries[t * group + g, d] = to_float(q[token + t, head * group + g, d])
            first = _first_seen(position, window, chunked)
            ahead = np.int64(tile[4])
            last = max(position + count, ahead)
            base = first // block_size
            blocks = (last + block_size - 1) // block_size - base
            scores = np.empty((rows, blocks * block_size), np.float32)
            of_keys, of_values = k_cache[head].ctypes.data, v_cache[head].ctypes.data
            of_key_scales, of_value_scales = k_scales[head].ctypes.data, v_scales[head].ctypes.data
            for block in range(blocks):
                keys = of_keys + table[base + block] * k_cache.strides[1]
                scales = of_key_scales + table[base + block] * k_scales.strides[1]
                _scores_of_block(queries, keys, block_size, k_cache, scales, scores, block * block_size)
            for t in range(count):
                seen = ahead if ahead > 0 else position + t + 1
                low = _first_seen(position + t, window, chunked) - base * block_size
                for g in range(group):
                    sink = to_float(sinks[head * group + g]) if sinks.shape[0] > 0 else np.float32(-np.inf)
                    row, high = scores[t * group + g], seen - base * block_size
                    _softmax(row, low, high, scale, softcap, sink, bias, head * group + g)
            results = np.zeros((rows, v_head_dim), np.float32)
            for block in range(blocks):
                begins = (base + block) * block_size
                skipped = max(first - begins, 0)  # positions that the tile does not see may hold anything
                seen, at = min(block_size, last - begins) - skipped, block * block_size + skipped
                values = of_values + table[base + block] * v_cache.strides[1] + skipped * v_cache.strides[2]
                scales = of_value_scales + table[base + block] * v_scales.strides[1] + skipped * v_scales.strides[2]
                if whole > 0:
                    _add_values(_SLICE, scores, at, values, scales, v_cache, seen, results, 0, whole)
                if rest > 0:
                    _add_values(rest, scores, at, values, scales, v_cache, seen, results, whole * _SLICE, 1)
            for t in range(count):
                for g in range(group):
                    for d in range(v_head_dim):
                        out[token + t, head * group + g, d] = from_float(results[t * group + g, d], out)

    return run
