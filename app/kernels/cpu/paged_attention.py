"""Attention that reads K and V directly from the blocks: of decodes, and of chunks of prompts in tiles of some tokens.

What a token's attention is depends on the token alone: see `app.kernels.cpu.attention_code`.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from .attention_code import MOST_ROWS, add_values_of_block, scores_of_block
from .kernel import kernel
from .numerics import exp, from_float, inline, to_float

_SLICE = 16
"""Dimensions of V that are computed together."""


@inline
def _softmax(scores, low, high, scale, softcap):  # type: ignore[no-untyped-def]
    """Of scores (positions,) from low to before high, in place; others become 0."""
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
    largest = seen[0]
    for i in range(seen.shape[0]):
        largest = max(largest, seen[i])
    total = np.float32(0)
    for i in range(seen.shape[0]):
        weight = exp(seen[i] - largest)
        seen[i] = weight
        total += weight
    factor = np.float32(1) / total
    for i in range(seen.shape[0]):
        seen[i] *= factor


@lru_cache
def paged_attention(group: int, head_dim: int, v_head_dim: int, block_size: int) -> Any:
    """The kernel for `group` query heads to each K/V head. Sizes are compiled in.

    There is a task for each tile and K/V head. The kernel takes
    - q (tokens, num_kv_heads * group, head_dim),
    - k_cache (num_kv_heads, num_blocks, head_dim, block_size), v_cache (num_kv_heads, num_blocks, block_size,
      v_head_dim),
    - block_tables (rows, blocks),
    - tiles (tiles, 4): row, first token, number of tokens (0: nothing to do), position of the first token,
    - window: each token sees the last `window` positions, or all if that is 0,
    - scale and softcap (0: none), float32,
    - out (tokens, num_kv_heads * group, v_head_dim), which it fills.
    """
    whole, rest = v_head_dim // _SLICE, v_head_dim % _SLICE

    @inline
    def scores_of(rows, queries, keys, scores, at):  # type: ignore[no-untyped-def]
        """For all rows, the scores of a block, from place `at` on."""
        for first in range(0, rows, MOST_ROWS):
            addresses = (
                queries[first].ctypes.data, queries.strides[0], keys.ctypes.data, head_dim,
                scores[first, at:].ctypes.data, scores.strides[0],
            )  # fmt: skip
            if rows - first >= 4:
                scores_of_block(4, block_size, addresses, keys)  # type: ignore[call-arg]
            elif rows - first == 3:
                scores_of_block(3, block_size, addresses, keys)  # type: ignore[call-arg]
            elif rows - first == 2:
                scores_of_block(2, block_size, addresses, keys)  # type: ignore[call-arg]
            else:
                scores_of_block(1, block_size, addresses, keys)  # type: ignore[call-arg]

    @inline
    def add_slice(rows, dims, weights, at, values, dim, results):  # type: ignore[no-untyped-def]
        """For all rows, add the weighted values (positions, v_head_dim), whose weights begin at place `at`."""
        for first in range(0, rows, MOST_ROWS):
            addresses = (
                weights[first, at:].ctypes.data, weights.strides[0], values[0, dim:].ctypes.data, values.strides[0],
                values.shape[0], results[first, dim:].ctypes.data, results.strides[0],
            )  # fmt: skip
            if rows - first >= 4:
                add_values_of_block(4, dims, addresses, values)  # type: ignore[call-arg]
            elif rows - first == 3:
                add_values_of_block(3, dims, addresses, values)  # type: ignore[call-arg]
            elif rows - first == 2:
                add_values_of_block(2, dims, addresses, values)  # type: ignore[call-arg]
            else:
                add_values_of_block(1, dims, addresses, values)  # type: ignore[call-arg]

    @kernel
    def run(begin, end, q, k_cache, v_cache, block_tables, tiles, window, scale, softcap, out):  # type: ignore[no-untyped-def]
        num_tiles, num_kv_heads = tiles.shape[0], k_cache.shape[0]
        for task in range(begin, end):
            # Each thread takes a run of tasks, and long and short tiles stand together: take one of each in turn.
            order, head = task // num_kv_heads, task % num_kv_heads
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
            first = max(0, position + 1 - window) if window > 0 else 0
            last = position + count
            base = first // block_size
            blocks = (last + block_size - 1) // block_size - base
            scores = np.empty((rows, blocks * block_size), np.float32)
            for block in range(blocks):
                scores_of(rows, queries, k_cache[head, table[base + block]], scores, block * block_size)
            for t in range(count):
                seen = position + t + 1
                low = max(0, seen - window) - base * block_size if window > 0 else 0
                for g in range(group):
                    _softmax(scores[t * group + g], low, seen - base * block_size, scale, softcap)
            results = np.zeros((rows, v_head_dim), np.float32)
            for block in range(blocks):
                # Positions that the tile does not see may hold anything.
                at = max(first - (base + block) * block_size, 0)
                values = v_cache[head, table[base + block], at : min(block_size, last - (base + block) * block_size)]
                for part in range(whole):
                    add_slice(rows, _SLICE, scores, block * block_size + at, values, part * _SLICE, results)
                if rest > 0:
                    add_slice(rows, rest, scores, block * block_size + at, values, whole * _SLICE, results)
            for t in range(count):
                for g in range(group):
                    for d in range(v_head_dim):
                        out[token + t, head * group + g, d] = from_float(results[t * group + g, d], out)

    return run
