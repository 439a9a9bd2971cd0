"""The operations between the large products of a decoder layer, each in one pass over its input.

Each function computes row by row. Most use all threads only for large inputs, because waking a thread takes as long as
computing some ten thousand numbers.
"""

import numpy as np
import torch
from torch import Tensor

from ..kv import LayerKV
from .kernel import constant, kernel
from .numerics import from_float, inline, keep, sigmoid, to_float

_WORTH_A_THREAD = 65536
"""How many numbers an input has when several threads are faster than one."""


@kernel
def _take_rows(begin, end, table, at, out):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        for i in range(out.shape[1]):
            out[row, i] = from_float(to_float(table[at[row], i]), out)


def take_rows(table: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """See `app.kernels.ops.take_rows`."""
    out = torch.empty(len(at), table.shape[1], dtype=dtype)
    _take_rows(len(out), out.numel() >= _WORTH_A_THREAD, constant(table), at, out)
    return out


@inline
def _norm_row(x, weight, offset, eps, adds, residual, out):  # type: ignore[no-untyped-def]
    if adds:
        for i in range(x.shape[0]):
            residual[i] = from_float(to_float(residual[i]) + to_float(x[i]), residual)
        x = residual
    total = np.float32(0)
    for i in range(x.shape[0]):
        value = to_float(x[i])
        total += value * value
    factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        out[i] = from_float(to_float(x[i]) * factor * (to_float(weight[i]) + offset), out)


@kernel
def _rms_norm(begin, end, x, weight, offset, eps, adds, residual, out):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        _norm_row(x[row], weight, offset, eps, adds, residual[row], out[row])


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float, residual: Tensor | None = None) -> Tensor:
    """See `app.kernels.ops.rms_norm`."""
    shape, size = x.shape, x.shape[-1]
    x = x.contiguous()
    if x.dim() != 2:
        x = x.view(-1, size)
    out = torch.empty_like(x)
    added = x if residual is None else residual.view_as(x)
    is_large = x.numel() >= _WORTH_A_THREAD
    _rms_norm(len(x), is_large, x, constant(weight), float(offset), float(eps), residual is not None, added, out)
    return out if len(shape) == 2 else out.view(shape)


@inline
def _gate(x, is_silu):  # type: ignore[no-untyped-def]
    return x * sigmoid(x) if is_silu else sigmoid(x)


@inline
def _gated_rms_norm_row(x, gate, weight, eps, is_silu, gates_first, values, out):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(x.shape[0]):
        factor = _gate(to_float(gate[i]), is_silu) if gates_first else np.float32(1)
        values[i] = to_float(x[i]) * factor
        total += values[i] * values[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        factor = np.float32(1) if gates_first else _gate(to_float(gate[i]), is_silu)
        out[i] = from_float(values[i] * scale * to_float(weight[i]) * factor, out)


@kernel
def _gated_rms_norm(begin, end, x, gate, weight, eps, group, is_silu, gates_first, out):  # type: ignore[no-untyped-def]
    values = np.empty(group, np.float32)
    for task in range(begin, end):
        row, head = task // x.shape[1], task % x.shape[1]
        for first in range(0, x.shape[2], group):
            part = slice(first, first + group)
            _gated_rms_norm_row(
                x[row, head, part], gate[row, head, part], weight[part], eps, is_silu, gates_first, values,
                out[row, head, part],
            )  # fmt: skip


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group: int, activation: str, gates_first: bool
) -> Tensor:
    """See `app.kernels.ops.gated_rms_norm`. The gate may be part of longer rows."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, gates, to = (part if part.dim() == 3 else part.reshape(-1, 1, part.shape[-1]) for part in (x, gate, out))
    is_large = x.numel() * 4 >= _WORTH_A_THREAD
    is_silu = activation == "silu"
    _gated_rms_norm(
        rows.shape[0] * rows.shape[1], is_large, rows, gates, constant(weight), float(eps), group, is_silu, gates_first,
        to,
    )  # fmt: skip
    return out


@kernel
def _refine_largest(begin, end, rounded, x, weight, out):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        largest = to_float(rounded[row, 0])
        for i in range(out.shape[1]):
            value = to_float(rounded[row, i])
            out[row, i] = value
            largest = max(largest, value)
        near = largest - np.float32(2.0**-6) * (abs(largest) + np.float32(1))
        for i in range(out.shape[1]):
            if out[row, i] >= near:
                total = np.float32(0)
                for k in range(x.shape[1]):
                    total += to_float(x[row, k]) * to_float(weight[i, k])
                out[row, i] = total


def refine_largest(rounded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """See `app.kernels.ops.refine_largest`. All that rounding may have moved above or below a row's largest count."""
    out = torch.empty(rounded.shape, dtype=torch.float32)
    _refine_largest(len(out), True, rounded, x.contiguous(), constant(weight), out)
    return out


@inline
def _silu_mul_row(gate_up, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        gate = to_float(gate_up[i])
        out[i] = from_float(gate * sigmoid(gate) * to_float(gate_up[out.shape[0] + i]), out)


@kernel
def _silu_mul(begin, end, gate_up, out):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        _silu_mul_row(gate_up[row], out[row])


def gated(gate_up: Tensor, _activation: str) -> Tensor:
    """See `app.kernels.ops.gated`; for silu only."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    _silu_mul(len(out), gate_up.numel() >= _WORTH_A_THREAD, gate_up.contiguous(), out)
    return out


@inline
def _rotate_head(x, cos, sin, out):  # type: ignore[no-untyped-def]
    half = cos.shape[0] // 2
    for i in range(half):
        first, second = to_float(x[i]), to_float(x[half + i])
        out[i] = from_float(first * to_float(cos[i]) - second * to_float(sin[i]), out)
        out[half + i] = from_float(second * to_float(cos[i]) + first * to_float(sin[i]), out)
    for i in range(2 * half, x.shape[0]):
        out[i] = from_float(to_float(x[i]), out)


@inline
def _norm_and_rotate_head(x, norms, weight, offset, eps, rotates, cos, sin, normed, out):  # type: ignore[no-untyped-def]
    if norms:
        _norm_row(x, weight, offset, eps, False, x, normed)
    else:
        for i in range(x.shape[0]):
            normed[i] = to_float(x[i])
    if rotates:
        _rotate_head(normed, cos, sin, out)
    else:
        for i in range(x.shape[0]):
            out[i] = from_float(normed[i], out)


@kernel
def _rotate_and_store(  # type: ignore[no-untyped-def]
    begin,
    end,
    qkv,
    norms,
    q_weight,
    k_weight,
    offset,
    eps,
    rotates,
    cos,
    sin,
    slots,
    q,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
):
    heads, kv_heads, block_size = q.shape[1], k_cache.shape[0], v_cache.shape[2]
    normed, rotated = np.empty((2, qkv.shape[2]), np.float32)
    for t in range(begin, end):
        block, place = slots[t] // block_size, slots[t] % block_size
        x, cosine, sine = qkv[t], cos[t], sin[t]
        for h in range(heads):
            _norm_and_rotate_head(x[h], norms, q_weight, offset, eps, rotates, cosine, sine, normed, q[t, h])
        for h in range(kv_heads):
            _norm_and_rotate_head(x[heads + h], norms, k_weight, offset, eps, rotates, cosine, sine, normed, rotated)
            keep(rotated, k_cache[h, block, :, place], k_scales[h], block, place)
            keep(x[heads + kv_heads + h], v_cache[h, block, place], v_scales[h], block, place)


def rotate_and_store(
    qkv: Tensor,
    num_heads: int,
    rope: tuple[Tensor, Tensor] | None,
    norms: tuple[Tensor, Tensor, float, float] | None,
    kv: LayerKV,
    slots: Tensor,
) -> Tensor:
    """Norm and rotate queries and keys, write K and V to their slots, and return the queries.

    qkv: (tokens, heads + 2 * kv_heads, head_dim); rope: cosine and sine, each (tokens, rotary_dim); norms: weights
    (head_dim,) for queries and for keys, what is added to these, and epsilon; kv: see
    `app.kernels.cpu.paged_attention`; slots: (tokens,).
    """
    q = qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[2])
    unused = qkv[0, 0]
    q_weight, k_weight, offset, eps = norms or (unused, unused, 0.0, 0.0)
    tables = rope or (qkv[:, 0], qkv[:, 0])
    is_large = qkv.numel() >= _WORTH_A_THREAD
    _rotate_and_store(
        len(qkv), is_large, qkv, norms is not None, q_weight, k_weight, float(offset), float(eps), rope is not None,
        *tables, slots, q, *map(constant, kv),
    )  # fmt: skip
    return q


@kernel
def _store(begin, end, k, v, slots, k_cache, v_cache, k_scales, v_scales):  # type: ignore[no-untyped-def]
    block_size = v_cache.shape[2]
    for t in range(begin, end):
        block, place = slots[t] // block_size, slots[t] % block_size
        for h in range(k_cache.shape[0]):
            keep(k[t, h], k_cache[h, block, :, place], k_scales[h], block, place)
            keep(v[t, h], v_cache[h, block, place], v_scales[h], block, place)


def store(k: Tensor, v: Tensor, kv: LayerKV, slots: Tensor) -> None:
    """Write k and v (tokens, kv_heads, dimensions) to slots (tokens,); see `rotate_and_store`."""
    is_large = k.numel() >= _WORTH_A_THREAD
    _store(len(k), is_large, k, v, slots, *map(constant, kv))


@inline
def _rotate_token(x, cos, sin, out):  # type: ignore[no-untyped-def]
    for head in range(x.shape[0]):
        _rotate_head(x[head], cos, sin, out[head])


@kernel
def _rotate(begin, end, x, cos, sin, out):  # type: ignore[no-untyped-def]
    for token in range(begin, end):
        _rotate_token(x[token], cos[token], sin[token], out[token])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `app.kernels.ops.rotate`. `x` may be part of a wider row."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _rotate(len(x), x.numel() >= _WORTH_A_THREAD, x, cos, sin, out)
    return out
