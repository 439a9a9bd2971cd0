"""Layers that carry a state along a request's tokens: short convolutions, the gated delta rule, Mamba 2's scan.

A step is a row of tokens, and what belongs to whom is in numbers that may change under a recorded step: see
`app.kernels.entries`. States lie in slots of a memory, and are read and written there. Everything is computed in
float32. There are kernels for GPUs and for CPUs.
"""

from types import ModuleType

from torch import Tensor


def _of(x: Tensor) -> ModuleType:
    """The kernels for where a tensor is. Each brings a compiler along that the other device does not need."""
    if x.is_cuda:
        from .gpu import recurrent as of_gpu

        return of_gpu
    from .cpu import recurrent as of_cpu

    return of_cpu


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
    """A causal convolution of each channel along each request's tokens: (tokens, channels), zero for padding.

    x: (tokens, channels), with any strides; weight: (channels, width); bias: (channels,); entry_of: (tokens,) int32,
    the entry of each token, -1 for padding; memory: (slots, channels, width), the last inputs of each request.
    `is_silu`: whether `silu` follows; `chunks`: there are some if entries may have several tokens.
    """
    out: Tensor = _of(x).convolve(x, weight, bias, is_silu, memory, entries, entry_of, chunks)
    return out


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
    """The gated delta rule (Yang et al., 2024): (tokens, heads, v_dim). Rows of padding are not written.

    With a state S (k_dim, v_dim) of each head: `S = exp(g) S; S += k (beta (v - S' k))'; out = S' q / sqrt(k_dim)`.

    q, k: (tokens, key heads, k_dim), each for several of v's heads; v: (tokens, heads, v_dim); g: (tokens, heads), or
    (tokens, heads, k_dim) for a decay of each channel (Kimi Linear, 2025); beta: (tokens, heads); memory: (slots,
    heads, k_dim, v_dim). `is_normed`: whether q and k are divided by their lengths first. `chunks`: those of entries of
    several tokens, see `app.kernels.entries`. `gates`: A and b (heads,), if g and beta are given as the inputs x and y
    of their gates, `g = -exp(A) softplus(x + b)` and `beta = sigmoid(y)`.
    """
    out: Tensor = _of(q).delta_rule(q, k, v, g, beta, is_normed, memory, entries, chunks, gates)
    return out


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
    """Mamba 2's selective scan (Dao and Gu, 2024): (tokens, heads, dim). Rows of padding are not written.

    With a state S (dim, size) of each head: `S = exp(dt a) S + dt x b'; out = S c + d x`.

    x: (tokens, heads, dim); dt: (tokens, heads), to which `dt_bias` (heads,) is added, then softplus, then `limits`;
    a, d: (heads,); b, c: (tokens, groups, size), each for several heads; memory: (slots, heads, dim, size).
    """
    out: Tensor = _of(x).scan(x, dt, a, b, c, d, dt_bias, is_softplus, limits, memory, entries)
    return out
