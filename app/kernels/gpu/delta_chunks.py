"""The gated delta rule for prompts: 64 tokens at once, in products of matrices.

What a chunk of tokens writes into a state depends on the state linearly, and on the tokens before by a triangular
system (Yang et al., 2024, "Parallelizing linear transformers with the delta rule", and "Gated delta networks"). With
keys k, rates b and decays G, summed up from the chunk's beginning, and the state S before it:

    L = b_i k_i' k_j exp(G_i - G_j) for j < i;  T = (1 + L)^-1;  U = T b v;  W = T b exp(G) k
    N = U - W S;  out = exp(G) q S + (q k' exp(G_i - G_j) for j <= i) N;  S <- exp(G_last) S + (exp(G_last - G) k)' N

T, U and W of all chunks are computed at once, and then one program for each request, head and part of its values goes
through the chunks. See `app.kernels.entries` for how these are given.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..entries import CHUNK
from .launch import launch

_BLOCK_V = 32
"""Values of a program."""


@triton.jit
def softplus(x):
    """log(1 + exp(x))"""
    return tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def decay_of(place, mask, a_log, dt_bias, RAW: tl.constexpr):
    """The logarithms of decays of a head, float32. With RAW, what is in memory is the inputs of their gates."""
    decay = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if RAW:
        decay = softplus(decay + tl.load(dt_bias).to(tl.float32)) * -tl.exp(tl.load(a_log).to(tl.float32))
    return decay


@triton.jit
def rate_of(place, mask, RAW: tl.constexpr):
    """How much of a value is written, float32. With RAW, what is in memory is the inputs of the gates."""
    rate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if RAW:
        rate = tl.sigmoid(rate)
    return rate


@triton.jit
def _keys(k, rows, is_token, i, stride, eps, K: tl.constexpr, NORMS: tl.constexpr):
    """(tokens, BLOCK_K) float32, as long as 1 with NORMS."""
    mask = is_token[:, None] & (i < K)[None, :]
    keys = tl.load(k + rows[:, None] * stride + i[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORMS:
        keys *= tl.rsqrt(tl.sum(keys * keys, axis=1) + eps)[:, None]
    return keys


@triton.jit
def _solve_twice_as_much(solved, system, after, before):
    """The inverse of blocks on the diagonal twice as large as those whose inverse is known.

    after, before: of rows and columns, which of the known blocks they are in.
    """
    coupling = tl.where((after % 2 == 1) & (before == after - 1), system, 0.0)
    return solved - tl.dot(tl.dot(solved, coupling), solved)


@triton.jit
def _solve(
    k, v, g, beta, a_log, dt_bias, chunks, w, u, decays, k_stride, v_stride, g_stride, beta_stride, eps,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr, NORMS: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """W, U and G of one chunk and head."""
    head = tl.program_id(0)
    start, count = tl.load(chunks + tl.program_id(1) * 2), tl.load(chunks + tl.program_id(1) * 2 + 1)
    if count > 0:
        n, i, j = tl.arange(0, SIZE), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
        is_token, rows = n < count, (start + n).to(tl.int64)
        dtype = w.dtype.element_ty
        keys = _keys(k + head // (HEADS // KEY_HEADS) * K, rows, is_token, i, k_stride, eps, K, NORMS)
        rates = rate_of(beta + rows * beta_stride + head, is_token, RAW)
        decay = decay_of(g + rows * g_stride + head, is_token, a_log + head, dt_bias + head, RAW)
        decay = tl.cumsum(decay, axis=0)
        tl.store(decays + rows * HEADS + head, decay, mask=is_token)
        after, before = n[:, None], n[None, :]
        fades = tl.exp(tl.minimum(decay[:, None] - decay[None, :], 0.0)) * rates[:, None]
        products = tl.dot(keys.to(dtype), tl.trans(keys.to(dtype)))
        system = tl.where(after > before, products * fades, 0.0)
        solved = tl.where(after == before, 1.0, 0.0)
        for level in tl.static_range(LEVELS):
            solved = _solve_twice_as_much(solved, system, after // (1 << level), before // (1 << level))
        solved = solved.to(dtype)
        faded = (keys * (rates * tl.exp(decay))[:, None]).to(dtype)
        place = (rows[:, None] * HEADS + head) * K + i[None, :]
        result = tl.dot(solved, faded).to(dtype)
        tl.store(w + place, result, mask=is_token[:, None] & (i < K)[None, :])
        mask = is_token[:, None] & (j < V)[None, :]
        values = tl.load(v + rows[:, None] * v_stride + head * V + j[None, :], mask=mask, other=0.0).to(tl.float32)
        result = tl.dot(solved, (values * rates[:, None]).to(dtype)).to(dtype)
        tl.store(u + (rows[:, None] * HEADS + head) * V + j[None, :], result, mask=mask)


@triton.jit
def _walk(
    q, k, w, u, decays, memory, out, entries, q_stride, k_stride, eps, scale,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, SIZE: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """BLOCK_V values of one head of one entry, whose chunks follow each other."""
    PARTS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    head, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    entry = entries + (tl.num_programs(1) - 1 - tl.program_id(1)) * 5  # prompts are the last
    slot, start, end = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2)
    cut, copy = tl.load(entry + 3), tl.load(entry + 4).to(tl.int64)
    if end > start + 1:
        n, i, j = tl.arange(0, SIZE), tl.arange(0, BLOCK_K), part * BLOCK_V + tl.arange(0, BLOCK_V)
        dtype = w.dtype.element_ty
        at = i[:, None] * V + j[None, :]
        mask = (i < K)[:, None] & (j < V)[None, :]
        state = tl.load(memory + (slot * HEADS + head) * K * V + at, mask=mask, other=0.0).to(tl.float32)
        key_head = head // (HEADS // KEY_HEADS)
        turn = tl.where(copy >= 0, cut, end)
        for _ in range((turn - start + SIZE - 1) // SIZE + (end - turn + SIZE - 1) // SIZE):
            stop = tl.minimum(start + SIZE, tl.where(start < turn, turn, end))
            is_token, rows = start + n < stop, (start + n).to(tl.int64)
            keys = _keys(k + key_head * K, rows, is_token, i, k_stride, eps, K, NORMS)
            queries = _keys(q + key_head * K, rows, is_token, i, q_stride, eps, K, NORMS)
            decay = tl.load(decays + rows * HEADS + head, mask=is_token, other=0.0)
            last = tl.load(decays + (stop - 1).to(tl.int64) * HEADS + head)
            of_keys = is_token[:, None] & (i < K)[None, :]
            reads = tl.load(w + (rows[:, None] * HEADS + head) * K + i[None, :], mask=of_keys, other=0.0)
            place = (rows[:, None] * HEADS + head) * V + j[None, :]
            of_values = is_token[:, None] & (j < V)[None, :]
            news = tl.load(u + place, mask=of_values, other=0.0).to(tl.float32)
            rounded = state.to(dtype)
            news = (news - tl.dot(reads, rounded)).to(dtype)
            seen = tl.dot((queries * tl.exp(decay)[:, None]).to(dtype), rounded)
            scores = tl.dot(queries.to(dtype), tl.trans(keys.to(dtype)))
            scores *= tl.exp(tl.minimum(decay[:, None] - decay[None, :], 0.0))
            scores = tl.where(n[:, None] >= n[None, :], scores, 0.0).to(dtype)
            seen += tl.dot(scores, news)
            tl.store(out + place, (seen * scale).to(out.dtype.element_ty), mask=of_values)
            fading = (keys * tl.exp(last - decay)[:, None]).to(dtype)
            state = state * tl.exp(last) + tl.dot(tl.trans(fading), news)
            start = stop
            if start == cut:
                copied = state.to(memory.dtype.element_ty)
                tl.store(memory + (copy * HEADS + head) * K * V + at, copied, mask=mask)
        tl.store(memory + (slot * HEADS + head) * K * V + at, state.to(memory.dtype.element_ty), mask=mask)


CHUNKED = (torch.bfloat16, torch.float16)
"""Dtypes for which tensor cores are exact enough."""


def delta_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    gates: tuple[Tensor, Tensor] | None,
    is_normed: bool,
    memory: Tensor,
    entries: Tensor,
    chunks: Tensor,
    out: Tensor,
) -> None:
    """See `app.kernels.gpu.recurrent.delta_rule`, which has the decodes: this writes what belongs to longer entries.

    q, k, v, g, beta: of which each token is in one piece.
    """
    tokens, heads, v_dim = v.shape
    k_dim = k.shape[-1]
    w, u = q.new_empty(tokens, heads, k_dim), q.new_empty(tokens, heads, v_dim)
    decays = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    options = {
        "HEADS": heads, "KEY_HEADS": k.shape[1], "K": k_dim, "V": v_dim, "SIZE": CHUNK, "NORMS": is_normed,
        "BLOCK_K": max(16, triton.next_power_of_2(k_dim)),
    }  # fmt: skip
    launch(
        _solve, (heads, len(chunks)), k, v, g, beta, *(gates or (g, g)), chunks, w, u, decays,
        *(x.stride(0) for x in (k, v, g, beta)), 1e-6, BLOCK_V=max(32, triton.next_power_of_2(v_dim)),
        LEVELS=CHUNK.bit_length() - 1, RAW=gates is not None, num_warps=4, **options,
    )  # fmt: skip
    launch(
        _walk, (heads * triton.cdiv(v_dim, _BLOCK_V), len(entries)),
        q, k, w, u, decays, memory, out, entries, q.stride(0), k.stride(0), 1e-6, k_dim**-0.5,
        BLOCK_V=_BLOCK_V, num_warps=4, **options,
    )  # fmt: skip
