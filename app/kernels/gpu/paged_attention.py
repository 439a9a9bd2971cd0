"""Attention that reads K and V directly from the blocks: a kernel for decoding requests, and one for chunks of prompts.

Both keep a running softmax (Milakov and Gimelshein, 2018; Dao et al., 2022), and take all query heads that share a K/V
head together, so that each K and V is read once. Exponents are of 2.

Layouts: q (tokens, heads, head_dim); K cache (blocks, kv_heads, block_size, head_dim), V cache alike with v_head_dim;
their scales, if they are in FP8, (blocks, kv_heads, block_size); block tables (rows, blocks) int32.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kv import ROUNDED_DTYPES, LayerKV
from .launch import launch, wait_for_input

DECODE_QUERIES = 16
"""Most query heads of decodes that are taken together, if one decode has no more: a GPU multiplies no fewer rows."""
OVERLAPPING_DECODES = 4
"""With more of them, attention has so many programs that few of them would be early."""
LEAST_BLOCK_V = 32
"""Dimensions of values that a program takes at least: with 16 and 64 rows, Triton 3.6 compiles a wrong product."""
_QUERIES_OF_LATENTS = 64
"""Most query heads that a program takes together where values are the beginnings of keys, which are long: the others
that share these are other programs', since what they add up does not fit the registers of one. Measured on an H200 with
the 16 and 128 heads of DeepSeek-V2 Lite and V3: with 16 at a time, 128 heads take nearly three times as long."""
MANY_PROGRAMS = 512
"""So many that each had better be small."""


@triton.jit
def first_seen(position, WINDOW: tl.constexpr, CHUNKED: tl.constexpr):
    """From where on tokens at positions see others: see `app.attention.config.AttentionConfig`."""
    if CHUNKED:
        return tl.maximum(position, 0) // WINDOW * WINDOW
    else:
        return tl.maximum(position - WINDOW + 1, 0)


@triton.jit
def attend_tile(
    state, q, k_base, v_base, k_scales, v_scales, table, begin, own, last, seen_from, scale, softcap, bias, distances,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SLOW: tl.constexpr, SCALED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Take in TILE keys from position `begin`. `own`: the position of each query (rows,), and `last`: the last that it
    sees. `bias`: where each query's begins, (rows,), of which there is one for each of `distances`.

    `state`: the largest score (rows,), the sum of weights (rows,), the weighted sum of values (rows, BLOCK_V).
    SCALED: K and V are in FP8, each token with a scale. Products are of the queries' type, which holds them exactly.
    Values are taken as 448 times as large as they are, so that weights times scales are at home in float16.
    FULL: every query sees all of these keys. Asking for each takes a third longer where K and V are in FP8.
    BLOCK_R: 0, or values are the beginnings of keys, and are not read a second time: then `q` is two parts, of which
    the first belongs to values and the second, of so many dimensions, to the rest of keys.
    """
    largest, total, acc = state
    positions = begin + tl.arange(0, TILE)
    read = positions
    if not FULL:
        # What nobody sees is not even read: blocks behind the window may be others' by now, and others hold anything.
        read = tl.minimum(read, seen_from - 1)
        if WINDOW > 0:
            read = tl.maximum(read, first_seen(tl.min(own, axis=0), WINDOW, CHUNKED))
    block = tl.load(table + read // BLOCK_SIZE).to(tl.int64)
    place = block * KV_HEADS * BLOCK_SIZE + read % BLOCK_SIZE
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    if BLOCK_R > 0:
        first, rest = q
        r = V_DIM + tl.arange(0, BLOCK_R)
        k = _load(k_base + place[None, :] * DIM + d[:, None], d[:, None], V_DIM, BLOCK_D)
        end = tl.load(k_base + place[None, :] * DIM + r[:, None], mask=r[:, None] < DIM, other=0.0)
        scores = (_product(first, k, SLOW) + _product(rest, end, SLOW)) * scale
    else:
        first = q
        k = _load(k_base + place[None, :] * DIM + d[:, None], d[:, None], DIM, BLOCK_D)
        scores = _product(first, k, SLOW) * scale
    if SCALED:
        scores *= tl.load(k_scales + place)[None, :]
    if SOFTCAP:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    if BIAS:
        distance = tl.minimum(tl.maximum(own[:, None] - positions[None, :], 0), distances - 1)
        scores += tl.load(bias[:, None] + distance)
    scores *= 1.4426950408889634
    if not FULL:
        seen = positions[None, :] <= last[:, None]
        if WINDOW > 0:
            seen &= positions[None, :] >= first_seen(own, WINDOW, CHUNKED)[:, None]
        scores = tl.where(seen, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    # A query that has seen nothing yet: -inf less -inf is no number.
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores - base[:, None])
    factor = tl.exp2(largest - base)
    total = total * factor + tl.sum(weights, axis=1)
    if SCALED:
        weights *= tl.load(v_scales + place)[None, :] * 448.0
    if BLOCK_R > 0:
        v = tl.trans(k)
    else:
        v = _load(v_base + place[:, None] * V_DIM + dv[None, :], dv[None, :], V_DIM, BLOCK_V)
    return new_largest, total, acc * factor[:, None] + _product(weights.to(first.dtype), v, SLOW)


@triton.jit
def _product(a, b, SLOW: tl.constexpr):
    """Of a and b, in the type of a, and in float32 exactly."""
    if SLOW:
        return tl.dot(a, b.to(a.dtype), input_precision="ieee")
    else:
        return tl.dot(a, b.to(a.dtype))


@triton.jit
def load_queries(
    q, q_head, is_query, DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    TO_HALF: tl.constexpr,
):  # fmt: skip
    """Queries (rows, BLOCK_D) of heads q_head (rows,), in float16 if TO_HALF; see `attend_tile` for their parts."""
    d = tl.arange(0, BLOCK_D)
    own: tl.constexpr = V_DIM if BLOCK_R > 0 else DIM
    first = tl.load(q + q_head[:, None] * DIM + d[None, :], mask=is_query[:, None] & (d[None, :] < own), other=0.0)
    if TO_HALF:
        first = first.to(tl.float16)
    if BLOCK_R > 0:
        r = V_DIM + tl.arange(0, BLOCK_R)
        rest = tl.load(q + q_head[:, None] * DIM + r[None, :], mask=is_query[:, None] & (r[None, :] < DIM), other=0.0)
        if TO_HALF:
            rest = rest.to(tl.float16)
        return first, rest
    else:
        return first


@triton.jit
def _load(place, d, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers of DIM dimensions, and 0 for others. Masks that hide nothing would take half as long again."""
    if DIM == BLOCK:
        return tl.load(place)
    else:
        return tl.load(place, mask=d < DIM, other=0.0)


@triton.jit
def mean(total, acc, SCALED: tl.constexpr):
    """What a query gets; 0 if it has seen nothing."""
    if SCALED:
        acc *= 1 / 448
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def first_state(sinks, heads, takes, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, SINKS: tl.constexpr):
    """The `state` of `attend_tile` before the first key, of rows with some heads (rows,).

    A sink is there from the beginning, if the rows are to be begun with it: `takes` (rows,).
    """
    acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
    if SINKS:
        sink = tl.load(sinks + heads, mask=takes, other=float("-inf")).to(tl.float32) * 1.4426950408889634
        return sink, tl.where(takes, 1.0, 0.0), acc
    else:
        return tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32), acc


@triton.jit(do_not_specialize=["splits"])
def _decode(
    q, k_cache, v_cache, k_scales, v_scales, tables, rows, seq_lens, counts, sinks, bias, out, partial, lse, scale,
    softcap, distances, table_stride, splits, GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    PARTS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, IS_WHOLE: tl.constexpr, WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, BIAS: tl.constexpr, SLOW: tl.constexpr,
    SCALED: tl.constexpr, STAGES: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """A K/V head of some decodes of one request, or one of PARTS equal parts of its query heads, and one of `splits`
    equal parts of their past: the whole, if IS_WHOLE.
    """
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    request, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + request)
    if count == 0:  # another program has it
        return
    seen_by_first = tl.load(seq_lens + request)
    length = seen_by_first + count - 1
    first = 0
    if WINDOW > 0:
        first = first_seen(seen_by_first - 1, WINDOW, CHUNKED) // TILE * TILE
    share = tl.cdiv(tl.cdiv(length - first, TILE), splits) * TILE
    start = first + split * share
    end = tl.minimum(start + share, length)

    m, dv = tl.arange(0, ROWS), tl.arange(0, BLOCK_V)
    q_head = (request + m // GROUP).to(tl.int64) * (KV_HEADS * PARTS * GROUP) + head * GROUP + m % GROUP
    is_query = m < count * GROUP
    # The first part has the sinks.
    begins = m < tl.where(split == 0, count * GROUP, 0)
    largest, total, acc = first_state(sinks, head * GROUP + m % GROUP, begins, ROWS, BLOCK_V, SINKS)
    if start < end:
        # One instruction makes two numbers of e4m3 float16, and three times as many bfloat16.
        queries = load_queries(q, q_head, is_query, DIM, V_DIM, BLOCK_D, BLOCK_R, SCALED and not SLOW)
        table = tables + tl.load(rows + request).to(tl.int64) * table_stride
        last = seen_by_first - 1 + m // GROUP
        biases = bias + (head * GROUP + m % GROUP) * distances
        kv_head = head // PARTS
        k_base = k_cache + kv_head * BLOCK_SIZE * DIM
        v_base = v_cache + kv_head * BLOCK_SIZE * V_DIM
        k_scales += kv_head * BLOCK_SIZE
        v_scales += kv_head * BLOCK_SIZE
        seen_by_all = tl.maximum(tl.minimum(end, seen_by_first) - start, 0)
        full = start if WINDOW > 0 else start + seen_by_all // TILE * TILE
        for begin in range(start, full, TILE):
            largest, total, acc = attend_tile(
                (largest, total, acc), queries, k_base, v_base, k_scales, v_scales, table, begin, last, last, end,
                scale, softcap, biases, distances, KV_HEADS, DIM, V_DIM, BLOCK_D, BLOCK_R, BLOCK_V, BLOCK_SIZE, TILE, 0,
                False, SOFTCAP, BIAS, SLOW, SCALED, True,
            )  # fmt: skip
        for begin in tl.range(full, end, TILE, num_stages=STAGES if WINDOW > 0 else 1):
            largest, total, acc = attend_tile(
                (largest, total, acc), queries, k_base, v_base, k_scales, v_scales, table, begin, last, last, end,
                scale, softcap, biases, distances, KV_HEADS, DIM, V_DIM, BLOCK_D, BLOCK_R, BLOCK_V, BLOCK_SIZE, TILE,
                WINDOW, CHUNKED, SOFTCAP, BIAS, SLOW, SCALED, False,
            )  # fmt: skip
    result = mean(total, acc, SCALED)
    mask = is_query[:, None] & (dv[None, :] < V_DIM)
    if IS_WHOLE:
        tl.store(out + q_head[:, None] * V_DIM + dv[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        place = q_head * splits + split
        tl.store(partial + place[:, None] * V_DIM + dv[None, :], result, mask=mask)
        tl.store(lse + place, largest + tl.log2(total), mask=is_query)


@triton.jit
def _merge(
    partial, lse, out, SPLITS: tl.constexpr, V_DIM: tl.constexpr, BLOCK_V: tl.constexpr, OVERLAPS: tl.constexpr = False
):  # fmt: skip
    """The parts of one head of one request, each weighted by the sum of its exponentials."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    head = tl.program_id(0).to(tl.int64)
    s, dv = tl.arange(0, SPLITS), tl.arange(0, BLOCK_V)
    sums = tl.load(lse + head * SPLITS + s)
    largest = tl.max(sums, axis=0)
    weights = tl.exp2(sums - tl.where(largest == float("-inf"), 0.0, largest))
    mask = (dv[None, :] < V_DIM) & (weights[:, None] > 0)
    parts = tl.load(partial + (head * SPLITS + s[:, None]) * V_DIM + dv[None, :], mask=mask, other=0.0)
    total = tl.sum(weights, axis=0)
    result = tl.sum(parts * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + head * V_DIM + dv, result.to(out.dtype.element_ty), mask=dv < V_DIM)


class Tiling(NamedTuple):
    """How a kernel goes through the past."""

    keys: int
    """That are taken at once."""
    warps: int
    stages: int
    """How many of these steps overlap."""


def _tiling_of_decodes(q: Tensor, kv: LayerKV, splits: int) -> Tiling:
    """Measured on an H200, for heads of 128 dimensions, 1 to 256 requests, and pasts of about 512 and 2048 tokens."""
    are_many = q.shape[0] * kv.k.shape[1] * splits >= MANY_PROGRAMS
    if kv.k.dtype in ROUNDED_DTYPES:
        return fitting(Tiling(32, 1, 5) if are_many else Tiling(128, 4, 5), kv)
    return fitting(Tiling(64, 2, 3) if are_many or splits > 2 else Tiling(128, 4, 3), kv)


def fitting(tiling: Tiling, kv: LayerKV) -> Tiling:
    """With fewer keys, if those of all stages but one do not fit the memory of a multiprocessor."""
    bytes_of_key = (kv.k.shape[3] + max(LEAST_BLOCK_V, kv.v.shape[3])) * kv.k.itemsize
    keys = tiling.keys
    while keys > 16 and (tiling.stages - 1) * keys * bytes_of_key > _shared_memory() * 7 // 8:  # of all but queries
        keys //= 2
    return tiling._replace(keys=keys)


def _tiling_of_latents(rows: int, q: Tensor, kv: LayerKV) -> Tiling:
    """Of so many queries with as long keys, all of which are in the memory of a multiprocessor: measured on an H200,
    which has room for 64 keys with 64 queries of DeepSeek's 576 dimensions.
    """
    left = _shared_memory() // kv.k.shape[3] - rows * q.itemsize
    keys, stages = next(
        (size for size in ((64, 2), (32, 2), (16, 2)) if size[0] * size[1] * kv.k.itemsize <= left), (16, 1)
    )
    return Tiling(keys, 4 if rows <= 16 else 8, stages)


@cache
def _shared_memory() -> int:
    """Bytes of a multiprocessor."""
    if not torch.cuda.is_available():
        return 2**17
    device = torch.cuda.current_device()
    return int(triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"])


def has_values_in_keys(kv: LayerKV) -> bool:
    """Whether values are the beginnings of keys; see `app.attention.config.AttentionConfig`."""
    return kv.v.shape[2] == 0


def _sizes(heads: int, kv: LayerKV) -> dict[str, Any]:
    """What the kernels are told of K and V, and of the query heads that share them."""
    _, kv_heads, block_size, dim = kv.k.shape
    v_dim, group, parts = kv.v.shape[3], heads // kv_heads, 1
    block_v = max(LEAST_BLOCK_V, triton.next_power_of_2(v_dim))
    block_d, block_r = max(16, triton.next_power_of_2(dim)), 0
    if has_values_in_keys(kv):
        block_d, block_r = block_v, max(16, triton.next_power_of_2(dim - v_dim))
        parts = next(n for n in range(1, group + 1) if group % n == 0 and group // n <= _QUERIES_OF_LATENTS)
    return {
        "GROUP": group // parts, "KV_HEADS": kv_heads, "PARTS": parts, "DIM": dim, "V_DIM": v_dim, "BLOCK_D": block_d,
        "BLOCK_R": block_r, "BLOCK_V": block_v, "BLOCK_SIZE": block_size,
    }  # fmt: skip


def _caches(kv: LayerKV) -> tuple[Tensor, ...]:
    """K and V with their scales, where values in keys are found as keys are."""
    return (kv.k, kv.k, kv.k_scales, kv.k_scales) if has_values_in_keys(kv) else tuple(kv)


def decode(
    q: Tensor, kv: LayerKV, tables: Tensor, rows: Tensor, seq_lens: Tensor, counts: Tensor, out: Tensor,
    *, scale: float, window: int | None, chunked: bool, softcap: float | None, sinks: Tensor | None,
    bias: Tensor | None, splits: int, tiling: Tiling | None = None,
) -> None:  # fmt: skip
    """One query token per decode: q (decodes, heads, head_dim) to out (decodes, heads, v_head_dim).

    rows (decodes,) int32: each one's row in the block tables; seq_lens (decodes,) int32: tokens that it sees, its own
    included, or 0 for none, whose `out` is 0. counts (decodes,) int32: number of decodes that are taken together, from
    this one on, successive tokens of one request; 0 for the others of these. There may be so many of them that
    their query heads are DECODE_QUERIES. sinks (heads,): see `app.attention.layer.Attention.forward`; bias (heads,
    distances): see `app.attention.config.LayerCache`. `splits`, a power of two: parts that each past is cut into.
    """
    sizes = _sizes(q.shape[1], kv)
    num_rows = max(DECODE_QUERIES, triton.next_power_of_2(sizes["GROUP"]))
    if tiling is None:
        is_latent = has_values_in_keys(kv)
        tiling = _tiling_of_latents(num_rows, q, kv) if is_latent else _tiling_of_decodes(q, kv, splits)
    decodes, v_dim = q.shape[0], kv.v.shape[3]
    partial = lse = out
    if splits > 1:
        partial = torch.empty(out.numel() * splits, dtype=torch.float32, device=q.device)
        lse = torch.empty(partial.numel() // v_dim, dtype=torch.float32, device=q.device)
    launch(
        _decode, (decodes, sizes["KV_HEADS"] * sizes["PARTS"], splits),
        q, *_caches(kv), tables, rows, seq_lens, counts, q if sinks is None else sinks, q if bias is None else bias,
        out, partial, lse, scale, softcap or 0.0, 0 if bias is None else bias.shape[1], tables.stride(0), splits,
        **sizes, ROWS=num_rows, TILE=tiling.keys, IS_WHOLE=splits == 1, WINDOW=window or 0, CHUNKED=chunked,
        SOFTCAP=softcap is not None, SINKS=sinks is not None, BIAS=bias is not None, SLOW=q.dtype is torch.float32,
        SCALED=kv.k.dtype in ROUNDED_DTYPES, STAGES=tiling.stages, overlaps=decodes <= OVERLAPPING_DECODES,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    if splits > 1:
        launch(
            _merge, (lse.numel() // splits,), partial, lse, out,
            SPLITS=splits, V_DIM=v_dim, BLOCK_V=triton.next_power_of_2(v_dim),
            overlaps=decodes <= OVERLAPPING_DECODES, num_warps=1,
        )  # fmt: skip


@triton.jit
def _chunks(
    q, k_cache, v_cache, k_scales, v_scales, tables, tiles, sinks, bias, out, scale, softcap, distances, table_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, PARTS: tl.constexpr, DIM: tl.constexpr,
    V_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, BIAS: tl.constexpr, SLOW: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One K/V head, and some successive query tokens of one request, each with all of its heads: ROWS queries."""
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tiles + tile * 5)
    token = tl.load(tiles + tile * 5 + 1)
    count = tl.load(tiles + tile * 5 + 2)
    position = tl.load(tiles + tile * 5 + 3)
    seen_to = tl.load(tiles + tile * 5 + 4)
    if count > 0:
        m, dv = tl.arange(0, ROWS), tl.arange(0, BLOCK_V)
        is_query = m < count * GROUP
        q_head = (token + m // GROUP).to(tl.int64) * (KV_HEADS * PARTS * GROUP) + head * GROUP + m % GROUP
        queries = load_queries(q, q_head, is_query, DIM, V_DIM, BLOCK_D, BLOCK_R, SCALED and not SLOW)
        table = tables + row.to(tl.int64) * table_stride
        own = position + m // GROUP
        last = tl.maximum(own, seen_to - 1)
        biases = bias + (head * GROUP + m % GROUP) * distances
        kv_head = head // PARTS
        k_base = k_cache + kv_head * BLOCK_SIZE * DIM
        v_base = v_cache + kv_head * BLOCK_SIZE * V_DIM
        k_scales += kv_head * BLOCK_SIZE
        v_scales += kv_head * BLOCK_SIZE
        end = tl.maximum(position + count, seen_to)
        first = 0
        if WINDOW > 0:
            first = first_seen(position, WINDOW, CHUNKED) // TILE * TILE
        largest, total, acc = first_state(sinks, head * GROUP + m % GROUP, is_query, ROWS, BLOCK_V, SINKS)
        full = first if WINDOW > 0 else (position + 1) // TILE * TILE
        for begin in range(first, full, TILE):
            largest, total, acc = attend_tile(
                (largest, total, acc), queries, k_base, v_base, k_scales, v_scales, table, begin, own, last, end,
                scale, softcap, biases, distances, KV_HEADS, DIM, V_DIM, BLOCK_D, BLOCK_R, BLOCK_V, BLOCK_SIZE, TILE, 0,
                False, SOFTCAP, BIAS, SLOW, SCALED, True,
            )  # fmt: skip
        for begin in tl.range(full, end, TILE, num_stages=STAGES if WINDOW > 0 else 1):
            largest, total, acc = attend_tile(
                (largest, total, acc), queries, k_base, v_base, k_scales, v_scales, table, begin, own, last, end,
                scale, softcap, biases, distances, KV_HEADS, DIM, V_DIM, BLOCK_D, BLOCK_R, BLOCK_V, BLOCK_SIZE, TILE,
                WINDOW, CHUNKED, SOFTCAP, BIAS, SLOW, SCALED, False,
            )  # fmt: skip
        result = mean(total, acc, SCALED)
        mask = is_query[:, None] & (dv[None, :] < V_DIM)
        tl.store(out + q_head[:, None] * V_DIM + dv[None, :], result.to(out.dtype.element_ty), mask=mask)


def chunks(
    q: Tensor, kv: LayerKV, tables: Tensor, tiles: Tensor, out: Tensor,
    *, scale: float, window: int | None, chunked: bool, softcap: float | None, sinks: Tensor | None,
    bias: Tensor | None, tile_tokens: int,
) -> None:  # fmt: skip
    """Chunks of prompts: q (tokens, heads, head_dim) to out (tokens, heads, v_head_dim).

    tiles (n, 5) int32: pieces of chunks, of `tile_tokens` tokens at most, each with its row in the block tables, its
    first token's index, its number of tokens (0: none), its first token's position, and the position before which
    its tokens see all, if that is behind them.
    """
    sizes = _sizes(q.shape[1], kv)
    num_rows = max(16, triton.next_power_of_2(tile_tokens * sizes["GROUP"]))
    tiling = _tiling_of_latents(num_rows, q, kv) if has_values_in_keys(kv) else fitting(_tiling_of_chunks(kv), kv)
    launch(
        _chunks, (tiles.shape[0], sizes["KV_HEADS"] * sizes["PARTS"]),
        q, *_caches(kv), tables, tiles, q if sinks is None else sinks, q if bias is None else bias, out, scale,
        softcap or 0.0, 0 if bias is None else bias.shape[1], tables.stride(0),
        **sizes, ROWS=num_rows, TILE=tiling.keys, WINDOW=window or 0, CHUNKED=chunked,
        SOFTCAP=softcap is not None, SINKS=sinks is not None, BIAS=bias is not None, SLOW=q.dtype is torch.float32,
        SCALED=kv.k.dtype in ROUNDED_DTYPES, STAGES=tiling.stages, num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def _tiling_of_chunks(kv: LayerKV) -> Tiling:
    return Tiling(128, 4, 3) if kv.k.dtype in ROUNDED_DTYPES else Tiling(64, 4, 2)
