"""Plain weights on a GPU, multiplied so that no row's result depends on the others."""

import torch
from torch import Tensor

from ...kernels.ops import HAS_TRITON
from ...kernels.routes import Routes
from ..linear import Linear
from .plain import Plain


class Invariant(Plain):
    """As `Plain`, by one kernel for any number of rows. Libraries cut sums into parts as the number suits them."""

    is_batch_invariant = True

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import linear

        return linear.invariant(x, layer.weight, layer.bias, layer.out_dtype or x.dtype)

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import linear

        return linear.grouped(x, layer.weight, layer.bias, routes, is_batch_invariant=True)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a device, and for activations of a dtype."""
    return device.type == "cuda" and HAS_TRITON and dtype is not torch.float32
