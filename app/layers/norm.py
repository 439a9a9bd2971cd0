"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

import torch
from torch import Tensor, nn

from ..kernels.ops import rms_norm, rounded_rms_norm
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
