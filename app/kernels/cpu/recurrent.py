"""Layers that carry a state along a request's tokens; see `app.kernels.recurrent`.

A task has all tokens of a request, one after the other, and a head, or some channels. Everything is computed in
float32, also between the tokens of a step.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .kernel import kernel
from .numerics import exp, from_float, inline, sigmoid, to_float

_CHANNELS = 512
"""Of a convolution's task."""
_WORTH_A_THREAD = 65536
"""How many numbers are computed when several threads are faster than one."""


@inline
def _read(entries, at):  # type: ignore[no-untyped-def]
    """Slot, first token, the one behind the last, and what is to be copied: see `app.kernels.entries`."""
    return entries[at, 0], entries[at, 1], entries[at, 2], entries[at, 3], entries[at, 4]


@inline
def _input(x, memory, start, at, d):  # type: ignore[no-untyped-def]
    """Of channel d at a token, which may be before the first of the step."""
    if at >= start:
        return to_float(x[at, d])
    return to_float(memory[d, memory.shape[1] + at - start])


@inline
def _keep_last(x, source, target, start, end, first, last):  # type: ignore[no-untyped-def]
    """Write the last inputs before token `end` to a slot. Ascending: what is still to be read is not overwritten."""
    width = target.shape[1]
    for d in range(first, last):
        for tap in range(width):
            target[d, tap] = from_float(_input(x, source, start, end - width + tap, d), target)


@kernel
def _convolve(begin, end, x, weight, has_bias, bias, is_silu, memory, entries, entry_of, out):  # type: ignore[no-untyped-def]
    dim, width = weight.shape
    parts = -(-dim // _CHANNELS)
    sums = np.empty(_CHANNELS, np.float32)
    for task in range(begin, end):
        entry, first = task // parts, task % parts * _CHANNELS
        slot, start, stop, cut, copy = _read(entries, entry)
        last = min(dim, first + _CHANNELS)
        for token in range(start, stop):
            for d in range(first, last):
                total = to_float(bias[d]) if has_bias else np.float32(0)
                for tap in range(width):
                    total += to_float(weight[d, tap]) * _input(x, memory[slot], start, token - width + 1 + tap, d)
                sums[d - first] = total
            for d in range(first, last):
                total = sums[d - first]
                out[token, d] = from_float(total * sigmoid(total) if is_silu else total, out)
        if copy >= 0:
            _keep_last(x, memory[slot], memory[copy], start, cut, first, last)
        if stop > start:
            _keep_last(x, memory[slot], memory[slot], start, stop, first, last)
        for token in range(out.shape[0] if entry == 0 else 0):
            if entry_of[token] < 0:  # padding
                out[token, first:last] = from_float(np.float32(0), out)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    is_silu: bool,
    memory: Tensor,
    entries: Tensor,
    entry_of: Tensor,
    chunks: Tensor,  # noqa: ARG001
) -> Tensor:
    """See `app.kernels.recurrent.convolve`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    tasks, is_large = len(entries) * -(-x.shape[1] // _CHANNELS), x.numel() * weight.shape[1] >= _WORTH_A_THREAD
    has_bias, bias = bias is not None, x[0] if bias is None else bias
    _convolve(tasks, is_large, x, weight, has_bias, bias, is_silu, memory, entries, entry_of, out)
    return out


@inline
def _decay(state, decays, keys, held, known):  # type: ignore[no-untyped-def]
    """Let a state (k_dim, v_dim) fade, and read what it knows of a key: (v_dim,)."""
    known[:] = np.float32(0)
    for i in range(held.shape[0]):
        decay, key = decays[i], keys[i]
        for j in range(held.shape[1]):
            faded = to_float(state[i, j]) * decay
            held[i, j] = faded
            known[j] += faded * key


@inline
def _change(held, keys, queries, changes, state, seen):  # type: ignore[no-untyped-def]
    """Write changes (v_dim,) under a key, and read what the state then has for a query: (v_dim,)."""
    seen[:] = np.float32(0)
    for i in range(held.shape[0]):
        key, query = keys[i], queries[i]
        for j in range(held.shape[1]):
            changed = held[i, j] + key * changes[j]
            state[i, j] = from_float(changed, state)
            seen[j] += changed * query


@inline
def _load(x, normed, scale, out):  # type: ignore[no-untyped-def]
    """A key or a query in float32, times a number; as long as 1 before, if `normed`."""
    total = np.float32(0)
    for i in range(out.shape[0]):
        out[i] = to_float(x[i])
        total += out[i] * out[i]
    factor = scale / np.sqrt(total + np.float32(1e-6)) if normed else scale
    for i in range(out.shape[0]):
        out[i] *= factor


@inline
def _softplus(x):  # type: ignore[no-untyped-def]
    return x if x > 20 else np.float32(math.log1p(math.exp(x)))


@inline
def _load_decays(g, raw, a_log, dt_bias, out):  # type: ignore[no-untyped-def]
    """Of each channel (k_dim,); g: one for all of them, or one for each."""
    if g.shape[0] == 1:
        decay = to_float(g[0])
        if raw:
            decay = -np.float32(math.exp(to_float(a_log))) * _softplus(decay + to_float(dt_bias))
        out[:] = np.float32(math.exp(decay))
    else:
        for i in range(out.shape[0]):
            out[i] = exp(to_float(g[i]))


@kernel
def _delta_rule(begin, end, q, k, v, g, beta, normed, raw, a_log, dt_bias, memory, entries, out):  # type: ignore[no-untyped-def]
    heads, k_dim, v_dim = memory.shape[1:]
    held = np.empty((k_dim, v_dim), np.float32)
    keys, queries, decays = np.empty((3, k_dim), np.float32)
    changes, seen = np.empty((2, v_dim), np.float32)
    scale = np.float32(1) / np.sqrt(np.float32(k_dim))
    for task in range(begin, end):
        entry, head = task // heads, task % heads
        slot, start, stop, cut, copy = _read(entries, entry)
        key_head, state = head // (heads // k.shape[1]), memory[slot, head]
        for token in range(start, stop):
            _load(k[token, key_head], normed, np.float32(1), keys)
            _load(q[token, key_head], normed, scale, queries)
            _load_decays(g[token, head], raw, a_log[head], dt_bias[head], decays)
            if token == start:
                _decay(state, decays, keys, held, changes)
            else:
                _decay(held, decays, keys, held, changes)
            rate = to_float(beta[token, head])
            if raw:
                rate = sigmoid(rate)
            for j in range(v_dim):
                changes[j] = (to_float(v[token, head, j]) - changes[j]) * rate
            if token == stop - 1:
                _change(held, keys, queries, changes, state, seen)
            else:
                _change(held, keys, queries, changes, held, seen)
            for j in range(v_dim):
                out[token, head, j] = from_float(seen[j], out)
            if token + 1 == cut:
                _copy(state, held, token == stop - 1, memory[copy, head])


@inline
def _copy(state, held, is_stored, target):  # type: ignore[no-untyped-def]
    for i in range(held.shape[0]):
        for j in range(held.shape[1]):
            target[i, j] = from_float(to_float(state[i, j]) if is_stored else held[i, j], target)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    is_normed: bool,
    memory: Tensor,
    entries: Tensor,
    chunks: Tensor,  # noqa: ARG001
    gates: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `app.kernels.recurrent.delta_rule`."""
    tokens, heads, v_dim = v.shape
    out = torch.empty(tokens, heads, v_dim, dtype=q.dtype)
    a_log, dt_bias = gates or (beta[0], beta[0])
    decays = g[..., None] if g.dim() == 2 else g
    is_large = tokens * memory[0].numel() >= _WORTH_A_THREAD
    _delta_rule(
        len(entries) * heads, is_large, q, k, v, decays, beta, is_normed, gates is not None, a_log, dt_bias, memory,
        entries, out,
    )  # fmt: skip
    return out


@inline
def _advance(state, decay, inputs, writes, reads, after, seen):  # type: ignore[no-untyped-def]
    """Go on from a state (dim, size) to the one after it, and read it: (dim,)."""
    for i in range(seen.shape[0]):
        total, value = np.float32(0), inputs[i]
        for j in range(writes.shape[0]):
            new = to_float(state[i, j]) * decay + value * writes[j]
            after[i, j] = from_float(new, after)
            total += new * reads[j]
        seen[i] = total


@kernel
def _scan(  # type: ignore[no-untyped-def]
    begin, end, x, dt, a, b, c, has_d, d, has_bias, dt_bias, is_softplus, least, most, memory, entries, out
):
    heads, dim, size = memory.shape[1:]
    held, writes, reads = np.empty((dim, size), np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    inputs, seen = np.empty((2, dim), np.float32)
    for task in range(begin, end):
        entry, head = task // heads, task % heads
        slot, start, stop, cut, copy = _read(entries, entry)
        group, state = head // (heads // b.shape[1]), memory[slot, head]
        for token in range(start, stop):
            width = to_float(dt[token, head])
            if has_bias:
                width += to_float(dt_bias[head])
            if is_softplus:
                width = _softplus(width)
            width = min(max(width, least), most)
            for i in range(dim):
                inputs[i] = width * to_float(x[token, head, i])
            for j in range(size):
                writes[j], reads[j] = to_float(b[token, group, j]), to_float(c[token, group, j])
            decay = np.float32(math.exp(width * to_float(a[head])))
            is_first, is_last = token == start, token == stop - 1
            if is_first and is_last:
                _advance(state, decay, inputs, writes, reads, state, seen)
            elif is_first:
                _advance(state, decay, inputs, writes, reads, held, seen)
            elif is_last:
                _advance(held, decay, inputs, writes, reads, state, seen)
            else:
                _advance(held, decay, inputs, writes, reads, held, seen)
            for i in range(dim):
                passed = to_float(d[head]) * to_float(x[token, head, i]) if has_d else np.float32(0)
                out[token, head, i] = from_float(seen[i] + passed, out)
            if token + 1 == cut:
                _copy(state, held, is_last, memory[copy, head])


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
    tokens, heads, _ = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    is_large = tokens * memory[0].numel() >= _WORTH_A_THREAD
    _scan(
        len(entries) * heads, is_large, x, dt, a, b, c, d is not None, a if d is None else d, dt_bias is not None,
        a if dt_bias is None else dt_bias, is_softplus, *limits, memory, entries, out,
    )  # fmt: skip
    return out
