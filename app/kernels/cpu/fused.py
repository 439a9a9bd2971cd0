"""The operations between the large products of a decoder layer, each in one pass over its input.

Each function computes row by row. It uses all threads only for large inputs, because waking a thread takes as long as
computing some ten thousand numbers.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .numerics import WORTH_A_THREAD, array, constant, exp, from_float, inline, kernel, to_float


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
def _rms_norm(x, weight, offset, eps, adds, residual, out):  # type: ignore[no-untyped-def]
    if x.size < WORTH_A_THREAD:
        for row in range(x.shape[0]):
            _norm_row(x[row], weight, offset, eps, adds, residual[row], out[row])
    else:
        for row in prange(x.shape[0]):
            _norm_row(x[row], weight, offset, eps, adds, residual[row], out[row])


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float, residual: Tensor | None = None) -> Tensor:
    """See `app.kernels.ops.rms_norm`."""
    shape, size = x.shape, x.shape[-1]
    x = x.contiguous()
    if x.dim() != 2:
        x = x.view(-1, size)
    out = torch.empty_like(x)
    rows = array(x)
    added = rows if residual is None else array(residual.view_as(x))
    _rms_norm(rows, constant(weight), np.float32(offset), np.float32(eps), residual is not None, added, array(out))
    return out if len(shape) == 2 else out.view(shape)


@kernel
def _refine_largest(rounded, x, weight, out):  # type: ignore[no-untyped-def]
    for row in prange(out.shape[0]):
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
    _refine_largest(array(rounded), array(x.contiguous()), constant(weight), array(out))
    return out


@inline
def _silu_mul_row(gate_up, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        gate = to_float(gate_up[i])
        small = exp(-abs(gate))
        sigmoid = (np.float32(1) if gate >= 0 else small) / (np.float32(1) + small)
        out[i] = from_float(gate * sigmoid * to_float(gate_up[out.shape[0] + i]), out)


@kernel
def _silu_mul(gate_up, out):  # type: ignore[no-untyped-def]
    if gate_up.size < WORTH_A_THREAD:
        for row in range(out.shape[0]):
            _silu_mul_row(gate_up[row], out[row])
    else:
        for row in prange(out.shape[0]):
            _silu_mul_row(gate_up[row], out[row])


def gated(gate_up: Tensor, _activation: str) -> Tensor:
    """See `app.kernels.ops.gated`; for silu only."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    _silu_mul(array(gate_up.contiguous()), array(out))
    return out


@inline
def _rotate_head(x, cos, sin, out):  # type: ignore[no-untyped-def]
    half = cos.shape[0] // 2
    for i in range(half):
        first, second = to_float(x[i]), to_float(x[half + i])
        out[i] = from_float(first * to_float(cos[i]) - second * to_float(sin[i]), out)
        out[half + i] = from_float(second * to_float(cos[i]) + first * to_float(sin[i]), out)
    for i in range(2 * half, x.shape[0]):
        out[i] = x[i]


@inline
def _rotate_and_store_token(x, cos, sin, block, offset, q, k_cache, v_cache):  # type: ignore[no-untyped-def]
    heads, kv_heads = q.shape[0], k_cache.shape[0]
    for head in range(heads):
        _rotate_head(x[head], cos, sin, q[head])
    for head in range(kv_heads):
        _rotate_head(x[heads + head], cos, sin, k_cache[head, block, offset])
        for i in range(x.shape[1]):
            v_cache[head, block, offset, i] = x[heads + kv_heads + head, i]


@kernel
def _rotate_and_store(qkv, cos, sin, slots, block_size, q, k_cache, v_cache):  # type: ignore[no-untyped-def]
    if qkv.size < WORTH_A_THREAD:
        for t in range(qkv.shape[0]):
            block, offset = slots[t] // block_size, slots[t] % block_size
            _rotate_and_store_token(qkv[t], cos[t], sin[t], block, offset, q[t], k_cache, v_cache)
    else:
        for t in prange(qkv.shape[0]):
            block, offset = slots[t] // block_size, slots[t] % block_size
            _rotate_and_store_token(qkv[t], cos[t], sin[t], block, offset, q[t], k_cache, v_cache)


def rotate_and_store(
    qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> Tensor:
    """Rotate queries and keys, write K and V to their slots, and return the queries.

    qkv: (tokens, heads + 2 * kv_heads, head_dim); cos, sin: (tokens, rotary_dim); caches: (kv_heads, blocks,
    block_size, head_dim); slots: (tokens,) int64.
    """
    q = qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[2])
    tables = array(cos), array(sin), array(slots)
    caches = constant(k_cache), constant(v_cache)
    _rotate_and_store(array(qkv), *tables, k_cache.shape[2], array(q), *caches)
    return q


@inline
def _rotate_token(x, cos, sin, out):  # type: ignore[no-untyped-def]
    for head in range(x.shape[0]):
        _rotate_head(x[head], cos, sin, out[head])


@kernel
def _rotate(x, cos, sin, out):  # type: ignore[no-untyped-def]
    if x.size < WORTH_A_THREAD:
        for token in range(x.shape[0]):
            _rotate_token(x[token], cos[token], sin[token], out[token])
    else:
        for token in prange(x.shape[0]):
            _rotate_token(x[token], cos[token], sin[token], out[token])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `app.kernels.ops.rotate`. `x` may be part of a wider row."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _rotate(array(x), array(cos), array(sin), array(out))
    return out
