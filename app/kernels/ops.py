"""The operations for which there are kernels. For a device or dtype that has none, they are done by torch."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import Adapters
from .routes import Routes
from .rows import Rows

CPU_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes of tensors that the CPU kernels take."""
HAS_TRITON = find_spec("triton") is not None
"""Whether there are kernels for the GPU: torch's builds for CUDA bring Triton with them."""


def keep_compiled(folder: Path, device: torch.device) -> None:
    """Keep a device's compiled kernels in a folder. It is called before the first kernel runs."""
    if device.type == "cuda":
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    else:
        from .cpu import kernel

        kernel.keep_compiled(folder / "kernels")


@cache
def _cpu() -> ModuleType:
    from .cpu import fused  # it imports Numba, which only the CPU needs

    return fused


@cache
def _gpu() -> ModuleType:
    from .gpu import fused

    return fused


def _kernels(x: Tensor) -> ModuleType | None:
    """The module with the kernels for a tensor, if there are any."""
    if x.is_cuda and HAS_TRITON:
        return _gpu()
    return _cpu() if x.is_cpu and x.dtype in CPU_DTYPES else None


def take_rows(table: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `at` (n,) of a table (rows, size) in some dtype."""
    if table.is_cpu and {table.dtype, dtype} <= set(CPU_DTYPES):
        out: Tensor = _cpu().take_rows(table, at, dtype)
        return out
    return table[at].to(dtype)


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float, residual: Tensor | None = None) -> Tensor:
    """`x / rms(x) * (weight + offset)` over the last dimension (Zhang and Sennrich, 2019), rounded at the end.

    If there is a residual, x is added to it in place, and the norm is that of the sum.
    """
    if kernels := _kernels(x):
        out: Tensor = kernels.rms_norm(x, weight, offset, eps, residual)
        return out
    if residual is not None:
        x = residual.add_(x)
    if offset:
        return F.rms_norm(x.float(), weight.shape, weight.float() + offset, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def rounded_rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float, residual: Tensor | None, group: int) -> Rows:
    """`rms_norm` rounded to FP8 in groups, on a GPU that has the kernel."""
    out: Rows = _gpu().rms_norm(x, weight, offset, eps, residual, group)
    return out


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group: int, activation: str, gates_first: bool
) -> Tensor:
    """`x / rms(x) * weight * activation(gate)`, where the norm is that of each `group` numbers of the last dimension.

    With `gates_first` x is multiplied by `activation(gate)` before. `activation` is silu or sigmoid.
    """
    if kernels := _kernels(x):
        out: Tensor = kernels.gated_rms_norm(x, gate, weight, eps, group, activation, gates_first)
        return out
    factor = F.silu(gate.float()) if activation == "silu" else gate.float().sigmoid()
    values = x.float() * factor if gates_first else x.float()
    values = F.rms_norm(values.unflatten(-1, (-1, group)), (group,), None, eps).flatten(-2) * weight.float()
    return (values if gates_first else values * factor).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` of x (..., in) and weight (out, in)."""
    if skinny := _skinny(x):
        out: Tensor = skinny(x, weight, bias, x.dtype)
        return out
    return F.linear(x, weight, bias)


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, adapters: Adapters, slots: Tensor) -> Tensor:
    """`linear` of x (tokens, in), with what adapters add to it; see `add_adapters`."""
    if skinny := _skinny(x):
        from .gpu.adapters import shrink

        out: Tensor = skinny(x, weight, bias, x.dtype, shrink(x, adapters, slots))
        return out
    if x.is_cuda and HAS_TRITON:
        from .gpu.adapters import expanded, shrink

        # The library's product adds to what is there while it multiplies, which costs nothing.
        return expanded(shrink(x, adapters, slots), bias, x.dtype).addmm_(x, weight.t())
    out = linear(x, weight, bias)
    add_adapters(x, adapters, slots, out)
    return out


def add_adapters(x: Tensor, adapters: Adapters, slots: Tensor, out: Tensor) -> None:
    """Add to out (tokens, outputs), which a layer made of x (tokens, inputs), what each token's adapter adds.

    slots (tokens,) int32: see `Adapters`; -1 for a token without an adapter.
    """
    if x.is_cuda and HAS_TRITON:
        from .gpu.adapters import expand, shrink

        expand(shrink(x, adapters, slots), out)
        return
    if x.is_cpu and x.dtype in CPU_DTYPES:
        from .cpu.adapters import add

        add(x, adapters, slots, out)
        return
    first = 0
    for part, size in enumerate(adapters.sizes):
        own = slice(first, first + size)
        for slot, (a, b) in enumerate(zip(adapters.a, adapters.b, strict=True)):
            of_b = b[:, own] if x.is_cpu else b[own].T
            delta = x @ a[part * adapters.rank : (part + 1) * adapters.rank].T @ of_b
            out[:, own] += delta * (slots == slot)[:, None]
        first += size


def _skinny(x: Tensor) -> Callable[..., Tensor] | None:
    """The kernel for products with few rows, if it takes this tensor."""
    if not (x.is_cuda and HAS_TRITON) or x.dtype is torch.float32:
        return None
    from .gpu.linear import MOST_ROWS, skinny

    return skinny if x.numel() <= MOST_ROWS * x.shape[-1] else None


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in float32. At least the largest of each row are never rounded to a shorter dtype."""
    if not x.is_cuda or x.dtype is torch.float32:
        out = F.linear(x, weight)
        return refine_largest(out, x, weight) if out.is_cpu and out.dtype is torch.bfloat16 else out.float()
    if skinny := _skinny(x):
        return skinny(x, weight, None, torch.float32)
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def refine_largest(rounded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`rounded`, a CPU's `x @ weight.T` in bfloat16, as float32, where the largest of each row are computed again."""
    out: Tensor = _cpu().refine_largest(rounded, x, weight)
    return out


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """`activation(gate) * up`: (tokens, size). gate_up (tokens, 2 * size) is the two side by side.

    `activation` is one of ACTIVATIONS.
    """
    kernels = _kernels(gate_up)
    if kernels and (gate_up.is_cuda or activation == "silu"):
        out: Tensor = kernels.gated(gate_up, activation)
        return out
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


class Clamped(NamedTuple):
    """The activation of gpt-oss: `gate * sigmoid(gain * gate) * (up + 1)`, gate at most `limit`, up within it."""

    gain: float
    limit: float


def clamped(gate_up: Tensor, activation: Clamped) -> Tensor:
    """(tokens, size) of gate_up (tokens, 2 * size), in which gate and up take turns."""
    if gate_up.is_cuda and (kernels := _kernels(gate_up)):
        out: Tensor = kernels.clamped(gate_up, *activation)
        return out
    gate, up = gate_up[:, ::2].clamp(max=activation.limit), gate_up[:, 1::2].clamp(-activation.limit, activation.limit)
    return gate * torch.sigmoid(activation.gain * gate) * (up + 1)


def rounded_gated(gate_up: Tensor, activation: str, group: int) -> Rows:
    """`gated` rounded to FP8 in groups, on a GPU that has the kernel."""
    out: Rows = _gpu().gated(gate_up, activation, group)
    return out


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary_dim dimensions of each head: x (tokens, heads, head_dim), tables (tokens, rotary_dim)."""
    if x.is_cpu and x.dtype in CPU_DTYPES:
        out: Tensor = _cpu().rotate(x, cos, sin)
        return out
    rotary_dim = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    rotated = x[..., :rotary_dim]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if rotary_dim == x.shape[-1] else torch.cat((rotated, x[..., rotary_dim:]), dim=-1)


# ---------------------------------------------------------------------- mixtures of experts


def router_logits(x: Tensor, weight: Tensor, is_batch_invariant: bool) -> Tensor:
    """`x @ weight.T` in float32, for x (tokens, in) and a small weight (experts, in).

    With `is_batch_invariant`, a row's result depends on nothing but the row, where there are kernels.
    """
    if x.is_cpu and x.dtype in CPU_DTYPES:
        out: Tensor = _cpu_experts().logits(x, weight)
        return out
    if x.is_cuda and HAS_TRITON and is_batch_invariant:
        from .gpu.linear import invariant

        return invariant(x, weight, None, torch.float32)
    return logits(x, weight)


def route(scores: Tensor, top_k: int, normalizes: bool) -> Routes:
    """The experts with the largest scores (tokens, experts) float32, weighted by the softmax of a token's scores.

    With `normalizes`, the weights of a token add up to 1. Otherwise those of all experts would.
    """
    if scores.is_cpu or HAS_TRITON:
        routes: Routes = _experts(scores).route(scores, top_k, normalizes)
        return routes
    weights, experts = torch.softmax(scores, -1).topk(top_k)
    if normalizes:
        weights = weights / weights.sum(-1, keepdim=True)
    return routes_of(experts, weights, scores.shape[1])


def routes_of(experts: Tensor, weights: Tensor, num_experts: int) -> Routes:
    """Routes by a choice that was made elsewhere: experts and weights (tokens, top_k)."""
    experts, weights = experts.to(torch.int32).contiguous(), weights.float().contiguous()
    if experts.is_cpu or HAS_TRITON:
        routes: Routes = _experts(experts).routes_of(experts, weights, num_experts)
        return routes
    of_pairs = experts.flatten()
    counts = of_pairs.bincount(minlength=num_experts).to(torch.int32)
    return Routes(experts, weights, counts, of_pairs.argsort(stable=True).to(torch.int32))


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Routes) -> Tensor:
    """`x @ weight.T + bias` of each pair, with its row of x and its expert's part of the others: (pairs, out).

    weight: (experts * out, in), bias: (experts * out,), one expert after the other; x: (pairs, in), or (tokens, in).
    """
    if x.is_cuda and HAS_TRITON:
        from .gpu.linear import grouped as on_gpu

        return on_gpu(x, weight, bias, routes)
    if x.is_cpu and x.dtype in CPU_DTYPES and len(routes.experts) <= _cpu_experts().MOST_TOKENS:
        out: Tensor = _cpu_experts().grouped(x, weight, bias, routes)
        return out
    return _grouped_by_torch(x, weight, bias, routes)


def _grouped_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Routes) -> Tensor:
    rows = x[routes.pairs // (routes.num_pairs // len(x))]
    outputs, first = len(weight) // len(routes.counts), 0
    out = x.new_empty(len(rows), outputs)
    for expert, count in enumerate(routes.counts.tolist()):
        if count:
            mine, some = slice(expert * outputs, (expert + 1) * outputs), slice(first, first + count)
            out[routes.pairs[some]] = F.linear(rows[some], weight[mine], None if bias is None else bias[mine])
            first += count
    return out


def combine(x: Tensor, weights: Tensor) -> Tensor:
    """The sum of each token's pairs x (tokens * top_k, size), multiplied by weights (tokens, top_k): (tokens, size)."""
    if _kernels(x):
        out: Tensor = _experts(x).combine(x, weights)
        return out
    return (x.unflatten(0, weights.shape) * weights.unsqueeze(-1)).sum(1).to(x.dtype)


@cache
def _cpu_experts() -> ModuleType:
    from .cpu import experts

    return experts


def _experts(x: Tensor) -> ModuleType:
    """The module with the kernels for experts, on a tensor's device."""
    if x.is_cuda:
        from .gpu import experts

        return experts
    return _cpu_experts()
