"""Weights in FP8, multiplied as they are by the GPU's kernels for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...kernels.ops import HAS_TRITON
from ...kernels.routes import Routes
from ...kernels.rows import Rows
from ..formats.base import Weight
from ..formats.float8 import Float8Weight
from ..linear import Linear
from .plain import Plain

if TYPE_CHECKING:
    from ...kernels.gpu import float8

_LEAST_GROUP = 32
"""Inputs that the GPU's product in FP8 takes at once."""


class Float8(Plain):
    """Keeps e4m3 as `weight`, and the scales beside it. Activations are rounded to e4m3 by token.

    If the method need not be batch invariant, those of a token that is alone are not rounded.
    """

    def __init__(self, group: int, blocks: Tensor | None, is_batch_invariant: bool) -> None:
        """`group`: inputs that share a scale. `blocks`: see the kernels' `Weight`."""
        self._group = group
        self._blocks = blocks
        self.is_batch_invariant = is_batch_invariant

    def group_for(self, layer: Linear, like: Tensor) -> int | None:  # noqa: ARG002
        """See `LinearMethod`."""
        return self._group if like.is_cuda and (len(like) > 1 or self.is_batch_invariant) else None

    def apply(self, layer: Linear, x: Tensor | Rows) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import float8

        weight = self._weight(layer)
        multiply = float8.invariant if self.is_batch_invariant else float8.multiply
        dtype = layer.out_dtype or x.dtype
        if isinstance(x, Rows):
            return multiply(x, weight, layer.bias, dtype)
        out = multiply(x.reshape(-1, layer.in_features), weight, layer.bias, dtype)
        return out.view(*x.shape[:-1], layer.out_features)

    def grouped(self, layer: Linear, x: Tensor | Rows, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import float8

        return float8.grouped(x, self._weight(layer), layer.bias, routes, self.is_batch_invariant)

    def _weight(self, layer: Linear) -> "float8.Weight":
        from ...kernels.gpu import float8

        return float8.Weight(layer.weight, layer.get_buffer("scales"), self._group, self._blocks)


def has_kernel(device: torch.device) -> bool:
    """Whether a device multiplies FP8, which takes compute capability 8.9."""
    return device.type == "cuda" and HAS_TRITON and torch.cuda.get_device_capability(device) >= (8, 9)


def keep(layer: Linear, pieces: Sequence[Weight], is_batch_invariant: bool = False) -> Float8 | None:
    """See `Keeper`."""
    from ...kernels.gpu import float8

    weights = [piece for piece in pieces if isinstance(piece, Float8Weight)]
    groups = {weight.group for weight in weights}
    if len(weights) < len(pieces) or len(groups) > 1:
        return None
    group = min(groups.pop(), layer.in_features)
    if group < layer.in_features and (group < _LEAST_GROUP or group.bit_count() > 1):
        return None
    layer.weight = nn.Parameter(torch.cat([weight.values for weight in weights]), requires_grad=False)
    scales = torch.cat([weight.scales for weight in weights]).T.contiguous()
    layer.register_buffer("scales", scales, persistent=False)
    return Float8(group, float8.blocks_of_scales(scales, group), is_batch_invariant)
