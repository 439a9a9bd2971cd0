"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

import torch
from torch import Tensor, nn

from ..kernels.ops import gated_rms_norm, rms_norm, rounded_rms_norm
from ..kernels.rows import Rows
from .linear import Linear


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension."""

    offset = 0.0

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None, into: Linear | None = None) -> Tensor | Rows:
        """The norm of x. If there is a residual, x is added to it in place, and the norm is that of the sum.

        If only one layer reads it, `into`, it has the form that the layer takes.
        """
        group = None if into is None else into.group_for(x)
        if group is not None:
            return rounded_rms_norm(x, self.weight, self.offset, self.eps, residual, group)
        return rms_norm(x, self.weight, self.offset, self.eps, residual)


class OffsetRMSNorm(RMSNorm):
    """Gemma's variant: checkpoints store the weight minus one, and it is applied in float32."""

    offset = 1.0


class GatedRMSNorm(nn.Module):
    """`x / rms(x) * weight * activation(gate)` over groups of the last dimension, or the norm of what is gated."""

    def __init__(self, size: int, eps: float, group: int, activation: str, gates_first: bool) -> None:
        """`activation`: see `gated_rms_norm`; `gates_first`: whether the norm is of `x * activation(gate)`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.group, self.activation, self.gates_first = eps, group, activation, gates_first

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: (..., size)."""
        return gated_rms_norm(x, gate, self.weight, self.eps, self.group, self.activation, self.gates_first)
