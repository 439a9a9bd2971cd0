"""Attention of decoding requests, which reads K and V directly from the blocks.

It is bound by memory: each K and V is read once, and everything else stays in the processor's cache.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from .kernel import kernel
from .numerics import exp, from_float, inline, to_float


@inline
def _scores(query, keys, table, first, length, sizes, scale, softcap, scores):  # type: ignore[no-untyped-def]
    """Dot products of query (group, head_dim) with all keys in its range: scores (group, length - first)."""
    group, head_dim, _, block_size = sizes
    key = np.empty(head_dim, np.float32)
    for position in range(first, length):
        block, offset = table[position // block_size], position % block_size
        for d in range(head_dim):
            key[d] = to_float(keys[block, offset, d])
        for g in range(group):
            total = np.float32(0)
            for d in range(head_dim):
                total += query[g, d] * key[d]
            total *= scale
            scores[g, position - first] = softcap * np.tanh(total / softcap) if softcap > 0 else total


@inline
def _softmax(scores):  # type: ignore[no-untyped-def]
    """In place, along the last axis."""
    for g in range(scores.shape[0]):
        largest = scores[g, 0]
        for i in range(scores.shape[1]):
            largest = max(largest, scores[g, i])
        total = np.float32(0)
        for i in range(scores.shape[1]):
            weight = exp(scores[g, i] - largest)
            scores[g, i] = weight
            total += weight
        factor = np.float32(1) / total
        for i in range(scores.shape[1]):
            scores[g, i] *= factor


@inline
def _combine(weights, values, table, first, length, sizes, result):  # type: ignore[no-untyped-def]
    """The weighted sum of all values in the range, block by block: result (group, v_head_dim)."""
    group, _, v_head_dim, block_size = sizes
    value = np.zeros((block_size, v_head_dim), np.float32)
    weight = np.empty(block_size, np.float32)
    for index in range(first // block_size, (length + block_size - 1) // block_size):
        begin = index * block_size
        low, high = max(first - begin, 0), min(length - begin, block_size)
        block = table[index]
        for o in range(low, high):
            for d in range(v_head_dim):
                value[o, d] = to_float(values[block, o, d])
        for g in range(group):
            for o in range(block_size):  # positions outside of the range have no weight
                weight[o] = weights[g, begin + o - first] if low <= o < high else np.float32(0)
            for d in range(v_head_dim):
                total = result[g, d]
                for o in range(block_size):
                    total += weight[o] * value[o, d]
                result[g, d] = total


@lru_cache
def paged_decode(group: int, head_dim: int, v_head_dim: int, block_size: int) -> Any:
    """The kernel for `group` query heads to each K/V head. Sizes are compiled in: then loops become vectors.

    There is a task for each request and K/V head. The kernel takes
    - q (requests, num_kv_heads * group, head_dim),
    - k_cache (num_kv_heads, num_blocks, block_size, head_dim), v_cache alike with v_head_dim,
    - block_tables (rows, blocks), of which each request's is that of its row in rows (requests,),
    - lengths (requests,), and window: each sees the last `window` of its positions, or all if that is 0,
    - scale and softcap (0: none), float32,
    - out (requests, num_kv_heads * group, v_head_dim), which it fills.
    """

    @kernel
    def run(begin, end, q, k_cache, v_cache, block_tables, rows, lengths, window, scale, softcap, out):  # type: ignore[no-untyped-def]
        sizes = (group, head_dim, v_head_dim, block_size)
        requests, num_kv_heads = q.shape[0], k_cache.shape[0]
        for task in range(begin, end):
            # Each thread takes a run of tasks, and requests come sorted by length: take long and short ones in turn.
            order, head = task // num_kv_heads, task % num_kv_heads
            r = order // 2 if order % 2 == 0 else requests - 1 - order // 2
            table, length = block_tables[rows[r]], np.int64(lengths[r])
            first = max(0, length - window) if window > 0 else 0
            query = np.empty((group, head_dim), np.float32)
            for g in range(group):
                for d in range(head_dim):
                    query[g, d] = to_float(q[r, head * group + g, d])
            scores = np.empty((group, length - first), np.float32)
            _scores(query, k_cache[head], table, first, length, sizes, scale, softcap, scores)
            _softmax(scores)
            result = np.zeros((group, v_head_dim), np.float32)
            _combine(scores, v_cache[head], table, first, length, sizes, result)
            for g in range(group):
                for d in range(v_head_dim):
                    out[r, head * group + g, d] = from_float(result[g, d], out)

    return run
