"""Layers that carry a state along a request's tokens: short convolutions, the gated delta rule, Mamba 2's scan.

A step is a row of tokens, and what belongs to whom is in numbers that may change under a captured graph: see
`app.kernels.entries`. States lie in slots of a memory, and are read and written there.

One program has a piece of a state in its registers, and takes all of a request's tokens one after the other. So
decodes and prompts are the same to it. Everything is computed in float32. Prompts of the gated delta rule are taken in
chunks instead, if there are tensor cores for their dtype: `app.kernels.gpu.delta_chunks`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .delta_chunks import CHUNKED, decay_of, delta_chunks, rate_of, softplus
from .launch import launch

_TILE, _WARPS = 2048, 1
"""Numbers of a state that a program has, and its warps."""


@triton.jit
def _convolve(
    x, weight, bias, memory, entries, entry_of, out, tokens, token_stride, stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens, of which BLOCK channels. With KEEPS, which is for steps of decodes, their inputs are kept, too."""
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    entry = tl.load(entry_of + token, mask=token < tokens, other=-1)
    mask = (entry >= 0) & (d < DIM)
    place = entries + tl.maximum(entry, 0) * 5
    slot, start = tl.load(place).to(tl.int64), tl.load(place + 1)
    copy = tl.load(place + 4).to(tl.int64)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=d < DIM, other=0.0).to(tl.float32)
    for tap in tl.static_range(WIDTH):  # ascending: what is kept does not overwrite what is still to be read
        at = token - (WIDTH - 1) + tap
        factor = tl.load(weight + d * WIDTH + tap, mask=d < DIM, other=0.0).to(tl.float32)
        new = tl.load(x + at.to(tl.int64) * token_stride + d * stride, mask=mask & (at >= start), other=0.0)
        old = tl.load(memory + (slot * DIM + d) * WIDTH + WIDTH + at - start, mask=mask & (at < start), other=0.0)
        value = new.to(tl.float32) + old.to(tl.float32)
        total += factor * value
        if KEEPS:
            kept = value.to(memory.dtype.element_ty)
            tl.store(memory + (copy * DIM + d) * WIDTH + tap, kept, mask=mask & (copy >= 0))
            tl.store(memory + (slot * DIM + d) * WIDTH + tap, kept, mask=mask)
    if SILU:
        total = total * tl.sigmoid(total)
    total = tl.where(mask, total, 0.0)
    tl.store(out + token.to(tl.int64) * DIM + d, total.to(out.dtype.element_ty), mask=(token < tokens) & (d < DIM))


@triton.jit
def _keep_last(x, memory, d, source, target, start, end, token_stride, stride, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write the last WIDTH inputs before token `end` to a slot, of which some may come from another."""
    for tap in tl.static_range(WIDTH):  # ascending: in place, an input that is still to be read is not overwritten
        at = end - WIDTH + tap + tl.zeros_like(d)
        new = tl.load(x + at.to(tl.int64) * token_stride + d * stride, mask=(d < DIM) & (at >= start), other=0.0)
        place = memory + (source * DIM + d) * WIDTH + WIDTH + at - start
        old = tl.load(place, mask=(d < DIM) & (at < start), other=0.0)
        kept = new.to(memory.dtype.element_ty) + old
        tl.store(memory + (target * DIM + d) * WIDTH + tap, kept, mask=d < DIM)


@triton.jit
def _keep_inputs(x, memory, entries, token_stride, stride, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK channels of one entry."""
    entry = entries + tl.program_id(0) * 5
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot, start, end = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2)
    cut, copy = tl.load(entry + 3), tl.load(entry + 4).to(tl.int64)
    if copy >= 0:
        _keep_last(x, memory, d, slot, copy, start, cut, token_stride, stride, DIM, WIDTH)
    if end > start:
        _keep_last(x, memory, d, slot, slot, start, end, token_stride, stride, DIM, WIDTH)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    is_silu: bool,
    memory: Tensor,
    entries: Tensor,
    entry_of: Tensor,
    chunks: Tensor,
) -> Tensor:
    """See `app.kernels.recurrent.convolve`."""
    tokens, dim = x.shape
    width, has_chunks = weight.shape[1], len(chunks) > 0
    rows, block = (8, 128) if has_chunks else (1, 256)
    out = torch.empty(tokens, dim, dtype=x.dtype, device=x.device)
    launch(
        _convolve, (triton.cdiv(tokens, rows), triton.cdiv(dim, block)),
        x, weight.contiguous(), x if bias is None else bias, memory, entries, entry_of, out, tokens,
        x.stride(0), x.stride(1), DIM=dim, WIDTH=width, ROWS=rows, BLOCK=block,
        SILU=is_silu, HAS_BIAS=bias is not None, KEEPS=not has_chunks, num_warps=4,
    )  # fmt: skip
    if has_chunks:
        launch(
            _keep_inputs, (len(entries), triton.cdiv(dim, 512)), x, memory, entries, x.stride(0), x.stride(1),
            DIM=dim, WIDTH=width, BLOCK=512, num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def _delta_rule(
    q, k, v, g, beta, a_log, dt_bias, memory, out, entries,
    q_stride, k_stride, v_stride, g_stride, beta_stride, eps, scale,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, NORMS: tl.constexpr, GATES: tl.constexpr, RAW: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """BLOCK_V values of one head of one entry, with GATES decays (1, or K of them) a token and head.

    Entries of more than MOST tokens are left to others.
    """
    VALUES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    head, part = tl.program_id(0) // VALUES, tl.program_id(0) % VALUES
    entry = entries + (tl.num_programs(1) - 1 - tl.program_id(1)) * 5  # prompts take longest, so they begin first
    slot, start, end = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2)
    cut, copy = tl.load(entry + 3), tl.load(entry + 4).to(tl.int64)
    if (end > start) & (end - start <= MOST):
        i, j = tl.arange(0, BLOCK_K), part * BLOCK_V + tl.arange(0, BLOCK_V)
        at = i[:, None] * V + j[None, :]
        mask = (i < K)[:, None] & (j < V)[None, :]
        state = tl.load(memory + (slot * HEADS + head) * K * V + at, mask=mask, other=0.0).to(tl.float32)
        key_head = head // (HEADS // KEY_HEADS)
        row = start.to(tl.int64)
        for _ in range(start, end):
            keys = tl.load(k + row * k_stride + key_head * K + i, mask=i < K, other=0.0).to(tl.float32)
            queries = tl.load(q + row * q_stride + key_head * K + i, mask=i < K, other=0.0).to(tl.float32)
            values = tl.load(v + row * v_stride + head * V + j, mask=j < V, other=0.0).to(tl.float32)
            rate = rate_of(beta + row * beta_stride + head, row >= 0, RAW)
            if NORMS:
                keys *= tl.rsqrt(tl.sum(keys * keys, axis=0) + eps)
                queries *= tl.rsqrt(tl.sum(queries * queries, axis=0) + eps)
            if GATES == 1:
                state *= tl.exp(decay_of(g + row * g_stride + head, row >= 0, a_log + head, dt_bias + head, RAW))
            else:
                decays = tl.load(g + row * g_stride + head * K + i, mask=i < K, other=0.0).to(tl.float32)
                state *= tl.exp(decays)[:, None]
            change = (values - tl.sum(state * keys[:, None], axis=0)) * rate
            state += keys[:, None] * change[None, :]
            seen = tl.sum(state * queries[:, None], axis=0) * scale
            tl.store(out + (row * HEADS + head) * V + j, seen.to(out.dtype.element_ty), mask=j < V)
            row += 1
            if row == cut:
                copied = state.to(memory.dtype.element_ty)
                tl.store(memory + (copy * HEADS + head) * K * V + at, copied, mask=mask)
        tl.store(memory + (slot * HEADS + head) * K * V + at, state.to(memory.dtype.element_ty), mask=mask)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    is_normed: bool,
    memory: Tensor,
    entries: Tensor,
    chunks: Tensor,
    gates: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `app.kernels.recurrent.delta_rule`."""
    q, k, v = map(_with_rows, (q, k, v))
    g = g if g.stride(1) == 1 and g.dim() == 2 else g.contiguous()
    beta = beta if beta.stride(1) == 1 else beta.contiguous()
    a_log, dt_bias = gates or (g, g)
    tokens, heads, v_dim = v.shape
    k_dim = k.shape[-1]
    block_k = triton.next_power_of_2(k_dim)
    block_v = min(triton.next_power_of_2(v_dim), max(1, _TILE // block_k))
    out = torch.empty(tokens, heads, v_dim, dtype=q.dtype, device=q.device)
    in_chunks = g.dim() == 2 and len(chunks) > 0 and q.dtype in CHUNKED
    launch(
        _delta_rule, (heads * triton.cdiv(v_dim, block_v), len(entries)),
        q, k, v, g, beta, a_log, dt_bias, memory, out, entries,
        *(x.stride(0) for x in (q, k, v, g, beta)), 1e-6, k_dim**-0.5,
        HEADS=heads, KEY_HEADS=k.shape[1], K=k_dim, V=v_dim, BLOCK_K=block_k, BLOCK_V=block_v, NORMS=is_normed,
        GATES=1 if g.dim() == 2 else k_dim, RAW=gates is not None, MOST=1 if in_chunks else 2**30, num_warps=_WARPS,
    )  # fmt: skip
    if in_chunks:
        delta_chunks(q, k, v, g, beta, gates, is_normed, memory, entries, chunks, out)
    return out


@triton.jit
def _scan(
    x, dt, a, b, c, d, dt_bias, memory, out, entries, x_stride, dt_stride, b_stride, c_stride, least, most,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """BLOCK dimensions of one head of one entry."""
    PARTS: tl.constexpr = (DIM + BLOCK - 1) // BLOCK
    head, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    entry = entries + (tl.num_programs(1) - 1 - tl.program_id(1)) * 5
    slot, start, end = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2)
    cut, copy = tl.load(entry + 3), tl.load(entry + 4).to(tl.int64)
    if end > start:
        i, j = part * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_SIZE)
        at = i[:, None] * SIZE + j[None, :]
        mask = (i < DIM)[:, None] & (j < SIZE)[None, :]
        state = tl.load(memory + (slot * HEADS + head) * DIM * SIZE + at, mask=mask, other=0.0).to(tl.float32)
        decay = tl.load(a + head).to(tl.float32)
        group = head // (HEADS // GROUPS)
        row = start.to(tl.int64)
        for _ in range(start, end):
            width = tl.load(dt + row * dt_stride + head).to(tl.float32)
            if HAS_BIAS:
                width += tl.load(dt_bias + head).to(tl.float32)
            if SOFTPLUS:
                width = softplus(width)
            width = tl.minimum(tl.maximum(width, least), most)
            inputs = tl.load(x + row * x_stride + head * DIM + i, mask=i < DIM, other=0.0).to(tl.float32)
            writes = tl.load(b + row * b_stride + group * SIZE + j, mask=j < SIZE, other=0.0).to(tl.float32)
            reads = tl.load(c + row * c_stride + group * SIZE + j, mask=j < SIZE, other=0.0).to(tl.float32)
            state = state * tl.exp(width * decay) + (width * inputs)[:, None] * writes[None, :]
            seen = tl.sum(state * reads[None, :], axis=1)
            if HAS_D:
                seen += inputs * tl.load(d + head).to(tl.float32)
            tl.store(out + (row * HEADS + head) * DIM + i, seen.to(out.dtype.element_ty), mask=i < DIM)
            row += 1
            if row == cut:
                copied = state.to(memory.dtype.element_ty)
                tl.store(memory + (copy * HEADS + head) * DIM * SIZE + at, copied, mask=mask)
        tl.store(memory + (slot * HEADS + head) * DIM * SIZE + at, state.to(memory.dtype.element_ty), mask=mask)


def scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    is_softplus: bool,
    limits: tuple[float, float],
    memory: Tensor,
    entries: Tensor,
) -> Tensor:
    """See `app.kernels.recurrent.scan`."""
    x, b, c = map(_with_rows, (x, b, c))
    dt = dt if dt.stride(1) == 1 else dt.contiguous()
    tokens, heads, dim = x.shape
    size = b.shape[-1]
    block_size = triton.next_power_of_2(size)
    block = min(triton.next_power_of_2(dim), max(1, _TILE // block_size))
    out = torch.empty(tokens, heads, dim, dtype=x.dtype, device=x.device)
    launch(
        _scan, (heads * triton.cdiv(dim, block), len(entries)),
        x, dt, a, b, c, a if d is None else d, a if dt_bias is None else dt_bias, memory, out, entries,
        x.stride(0), dt.stride(0), b.stride(0), c.stride(0), *limits,
        HEADS=heads, GROUPS=b.shape[1], DIM=dim, SIZE=size, BLOCK=block, BLOCK_SIZE=block_size,
        HAS_D=d is not None, HAS_BIAS=dt_bias is not None, SOFTPLUS=is_softplus, num_warps=_WARPS,
    )  # fmt: skip
    return out


def _with_rows(x: Tensor) -> Tensor:
    """(tokens, heads, dim) of which each token is in one piece."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
