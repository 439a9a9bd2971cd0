"""The operations that have kernels of their own, and torch's where they have none for a device or dtype."""

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_DTYPES = (torch.float32, torch.bfloat16)
"""What the CPU kernels compute on."""


def _on_cpu(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in CPU_DTYPES


@cache
def _cpu() -> ModuleType:
    from app.kernels.cpu import fused  # with Numba, which is for the CPU only

    return fused


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
    """`x / rms(x) * (weight + offset)` over the last dimension (Zhang and Sennrich, 2019), rounded at the end."""
    if _on_cpu(x):
        out: Tensor = _cpu().rms_norm(x, weight, offset, eps)
        return out
    if offset:
        return F.rms_norm(x.float(), weight.shape, weight.float() + offset, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def refine_largest(rounded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`rounded` = `x @ weight.T` as float32; for a CPU's bfloat16, the largest of each row as if never rounded."""
    if rounded.dtype is torch.bfloat16 and rounded.is_cpu:
        out: Tensor = _cpu().refine_largest(rounded, x, weight)
        return out
    return rounded.float()


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of (tokens, 2 * size), which are one behind the other: (tokens, size)."""
    if _on_cpu(gate_up):
        out: Tensor = _cpu().silu_mul(gate_up)
        return out
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (tokens, heads, head_dim) by tables of (tokens, rotary_dim)."""
    if _on_cpu(x):
        out: Tensor = _cpu().rotate(x, cos, sin)
        return out
    rotary_dim = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    rotated = x[..., :rotary_dim]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if rotary_dim == x.shape[-1] else torch.cat((rotated, x[..., rotary_dim:]), dim=-1)
