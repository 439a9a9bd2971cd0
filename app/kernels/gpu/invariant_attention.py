"""Attention whose sums have an order that depends on positions alone: a decode and a chunk of a prompt give a token the
same result to the last bit, whatever else is in the step.

The past is cut into parts of PART keys, from position 0 on. A softmax runs over each part, and the parts are then added
one by one, each weighted by the sum of its exponentials. Both kinds of steps do that by one kernel, and with tiles of
one size where another one would have threads add up keys in another order, even though a decode leaves most rows of a
tile empty. Nor is it left to the compiler what it makes of a product and a sum. Layouts are those of
`.paged_attention`.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kv import ROUNDED_DTYPES, LayerKV
from .launch import launch, wait_for_input
from .paged_attention import (
    DECODE_QUERIES,
    LEAST_BLOCK_V,
    MANY_PROGRAMS,
    OVERLAPPING_DECODES,
    Tiling,
    attend_tile,
    first_seen,
    first_state,
    fitting,
    load_queries,
    mean,
)

PART = 512
"""Keys of a part: a multiple of all tiles."""
_ROWS = 64
"""Query heads times tokens of a tile, at least."""


@triton.jit
def _add_part(state, lse, part):
    """Take in a part, (rows, BLOCK_V), whose exponentials have a sum with the logarithm lse (rows,)."""
    largest, total, acc = state
    new_largest = tl.maximum(largest, lse)
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    old, new = tl.exp2(largest - base), tl.exp2(lse - base)
    return new_largest, total * old + new, acc * old[:, None] + part * new[:, None]


@triton.jit
def _first_key(position, TILE: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr):
    """The first key of the first tile that a token sees."""
    return first_seen(position, WINDOW, CHUNKED) // TILE * TILE if WINDOW > 0 else 0


@triton.jit(do_not_specialize=["splits"])
def _attend(
    q, k_cache, v_cache, k_scales, v_scales, tables, tiles, lens, counts, sinks, out, parts, lses, scale, softcap,
    table_stride, splits, most_parts, GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr, IS_DECODE: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, SLOW: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """One K/V head, and some successive query tokens of one request, each with all of its heads: ROWS queries.

    If IS_DECODE, they are decodes that are taken together: `tiles` are their rows, and `lens` and `counts` are those of
    `decode`. Of `splits` programs, each takes every `splits`-th part, and leaves it in `parts` and `lses` for `_merge`.
    Parts of chunks are added up here.
    """
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if IS_DECODE:
        row, token = tl.load(tiles + tile), tile
        count, position = tl.load(counts + tile), tl.load(lens + tile) - 1
        seen_to = 0
    else:
        row, token = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1)
        count, position = tl.load(tiles + tile * 5 + 2), tl.load(tiles + tile * 5 + 3)
        seen_to = tl.load(tiles + tile * 5 + 4)
    if count == 0:
        return
    end = tl.maximum(position + count, seen_to)
    m, dv = tl.arange(0, ROWS), tl.arange(0, BLOCK_V)
    is_query = m < count * GROUP
    q_head = (token + m // GROUP).to(tl.int64) * KV_HEADS * GROUP + head * GROUP + m % GROUP
    queries = load_queries(q, q_head, is_query, DIM, V_DIM, BLOCK_D, 0, SCALED and not SLOW)
    table = tables + row.to(tl.int64) * table_stride
    own = position + m // GROUP
    last = tl.maximum(own, seen_to - 1)
    k_base, v_base = k_cache + head * BLOCK_SIZE * DIM, v_cache + head * BLOCK_SIZE * V_DIM
    k_scales += head * BLOCK_SIZE
    v_scales += head * BLOCK_SIZE
    first = _first_key(position, TILE, WINDOW, CHUNKED)
    all_see = 0 if WINDOW > 0 else (position + 1) // TILE * TILE
    mask = is_query[:, None] & (dv[None, :] < V_DIM)
    nothing = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    largest, total, acc = first_state(sinks, head * GROUP + m % GROUP, is_query, ROWS, BLOCK_V, SINKS)
    for part in range(first // PART + split, tl.cdiv(end, PART), splits):
        start, stop = tl.maximum(part * PART, first), tl.minimum((part + 1) * PART, end)
        full = tl.minimum(tl.maximum(all_see, start), stop)
        part_largest, part_total = nothing
        part_acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
        for begin in range(start, full, TILE):
            part_largest, part_total, part_acc = attend_tile(
                (part_largest, part_total, part_acc), queries, k_base, v_base, k_scales, v_scales, table, begin, own,
                last, end, scale, softcap, own, 0, KV_HEADS, DIM, V_DIM, BLOCK_D, 0, BLOCK_V, BLOCK_SIZE,
                TILE, 0, False, SOFTCAP, False, SLOW, SCALED, True,
            )  # fmt: skip
        for begin in tl.range(full, stop, TILE, num_stages=STAGES if WINDOW > 0 else 1):
            part_largest, part_total, part_acc = attend_tile(
                (part_largest, part_total, part_acc), queries, k_base, v_base, k_scales, v_scales, table, begin, own,
                last, end, scale, softcap, own, 0, KV_HEADS, DIM, V_DIM, BLOCK_D, 0, BLOCK_V, BLOCK_SIZE,
                TILE, WINDOW, CHUNKED, SOFTCAP, False, SLOW, SCALED, False,
            )  # fmt: skip
        lse, result = part_largest + tl.log2(part_total), mean(part_total, part_acc, SCALED)
        if not IS_DECODE:
            largest, total, acc = _add_part((largest, total, acc), lse, result)
        else:
            place = q_head * most_parts + part
            tl.store(parts + place[:, None] * V_DIM + dv[None, :], result, mask=mask)
            tl.store(lses + place, lse, mask=is_query)
    if not IS_DECODE:
        result = mean(total, acc, False)
        tl.store(out + q_head[:, None] * V_DIM + dv[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _merge(
    parts, lses, lens, sinks, out, most_parts, HEADS: tl.constexpr, V_DIM: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, PART: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr, SINKS: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """Add up the parts of one head of one decode, in their order."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    request, head = tl.program_id(0), tl.program_id(1)
    one, dv = tl.arange(0, 1), tl.arange(0, BLOCK_V)[None, :]
    q_head = request.to(tl.int64) * HEADS + head + one
    end = tl.load(lens + request)
    largest, total, acc = first_state(sinks, head + one, one == 0, 1, BLOCK_V, SINKS)
    for part in tl.range(_first_key(end - 1, TILE, WINDOW, CHUNKED) // PART, tl.cdiv(end, PART), num_stages=4):
        place = q_head * most_parts + part
        result = tl.load(parts + place[:, None] * V_DIM + dv, mask=dv < V_DIM, other=0.0)
        largest, total, acc = _add_part((largest, total, acc), tl.load(lses + place), result)
    result = mean(total, acc, False)
    tl.store(out + q_head[:, None] * V_DIM + dv, result.to(out.dtype.element_ty), mask=dv < V_DIM)


def decode(
    q: Tensor, kv: LayerKV, tables: Tensor, rows: Tensor, seq_lens: Tensor, counts: Tensor, out: Tensor,
    *, scale: float, window: int | None, chunked: bool, softcap: float | None, sinks: Tensor | None,
    bias: Tensor | None, splits: int,
) -> None:  # fmt: skip
    """See `.paged_attention.decode`; `splits`: programs that share the parts of each past.

    Models that want a bias are never batch invariant: with it, the compiler adds the rows of some tiles up in another
    order.
    """
    assert bias is None
    decodes, heads, _ = q.shape
    _, kv_heads, block_size, v_dim = kv.v.shape
    most_parts = triton.cdiv(tables.shape[1] * block_size, PART)
    parts = torch.empty(decodes * heads * most_parts * v_dim, dtype=torch.float32, device=q.device)
    lses = torch.empty(decodes * heads * most_parts, dtype=torch.float32, device=q.device)
    constants = _constants(q, kv, window, chunked, softcap, sinks, *_tile_of_decodes(q, kv, splits))
    of_heads = q if sinks is None else sinks
    launch(
        _attend, (decodes, kv_heads, splits),
        q, *kv, tables, rows, seq_lens, counts, of_heads, out, parts, lses, scale,
        softcap or 0.0, tables.stride(0), splits, most_parts,
        **constants, IS_DECODE=True, STAGES=3, overlaps=decodes <= OVERLAPPING_DECODES, num_stages=3,
    )  # fmt: skip
    launch(
        _merge, (decodes, heads), parts, lses, seq_lens, of_heads, out, most_parts,
        HEADS=heads, V_DIM=v_dim, BLOCK_V=constants["BLOCK_V"], TILE=constants["TILE"], PART=PART, WINDOW=window or 0,
        CHUNKED=chunked, SINKS=sinks is not None,
        overlaps=decodes <= OVERLAPPING_DECODES, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def chunks(
    q: Tensor, kv: LayerKV, tables: Tensor, tiles: Tensor, out: Tensor,
    *, scale: float, window: int | None, chunked: bool, softcap: float | None, sinks: Tensor | None,
    bias: Tensor | None, tile_tokens: int,
) -> None:  # fmt: skip
    """See `.paged_attention.chunks`."""
    assert bias is None
    kv_heads = kv.k.shape[1]
    group = q.shape[1] // kv_heads
    launch(
        _attend, (tiles.shape[0], kv_heads, 1),
        q, *kv, tables, tiles, tiles, tiles, q if sinks is None else sinks, out, out, out,
        scale, softcap or 0.0, tables.stride(0), 1, 0,
        **_constants(q, kv, window, chunked, softcap, sinks, max(_ROWS, tile_tokens * group), 4),
        IS_DECODE=False, STAGES=2, num_stages=2,
    )  # fmt: skip


def _tile_of_decodes(q: Tensor, kv: LayerKV, splits: int) -> tuple[int, int]:
    """Rows, and warps that share them. Few rows are a quarter faster where there is enough to do (an H200)."""
    decodes, heads, _ = q.shape
    group = heads // kv.k.shape[1]
    are_many = decodes * kv.k.shape[1] * splits >= MANY_PROGRAMS
    if are_many and group <= DECODE_QUERIES and kv.k.dtype not in ROUNDED_DTYPES and _adds_alike():
        return DECODE_QUERIES, 1
    return max(_ROWS, group), 4


@cache
def _adds_alike() -> bool:
    """Whether 16 rows in one warp are added up as 64 in four are. It was found so for compute capability 9.

    It is not so for K and V in FP8, of which the compiler gives products of 16 rows another order of inputs.
    """
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def _constants(
    q: Tensor,
    kv: LayerKV,
    window: int | None,
    chunked: bool,
    softcap: float | None,
    sinks: Tensor | None,
    rows: int,
    warps: int,
) -> dict[str, Any]:
    """What decodes and chunks have in common, but for the rows of a tile and the warps that share them."""
    _, heads, dim = q.shape
    _, kv_heads, block_size, v_dim = kv.v.shape
    group = heads // kv_heads
    return {
        "GROUP": group,
        "ROWS": triton.next_power_of_2(rows),
        "KV_HEADS": kv_heads,
        "DIM": dim,
        "V_DIM": v_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "BLOCK_V": max(LEAST_BLOCK_V, triton.next_power_of_2(v_dim)),
        "BLOCK_SIZE": block_size,
        "TILE": fitting(Tiling(64, 4, 3), kv).keys,
        "PART": PART,
        "WINDOW": window or 0,
        "CHUNKED": chunked,
        "SOFTCAP": softcap is not None,
        "SINKS": sinks is not None,
        "SLOW": q.dtype is torch.float32,
        "SCALED": kv.k.dtype in ROUNDED_DTYPES,
        "num_warps": warps,
        "enable_fp_fusion": False,
    }
