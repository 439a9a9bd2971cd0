"""Weights as small whole numbers, multiplied as they are, by the GPU's kernels for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...kernels.ops import HAS_TRITON
from ...kernels.routes import Routes
from ..formats.base import Weight
from ..formats.codes import Codes, joined
from ..linear import Linear
from .plain import Plain

if TYPE_CHECKING:
    from ...kernels.gpu import integer

GROUP = 128
"""Inputs that share a scale, of weights that are rounded on a GPU: with 32, as on a CPU, decodes are slower."""


class IntegerGpu(Plain):
    """Keeps codes as `weight`, in the order of the kernels, and scales and points beside it."""

    def __init__(self, bits: int, group: int, order: Tensor | None, is_batch_invariant: bool) -> None:
        """`bits` of a code; `group`: inputs that share a scale; `order` of the inputs, see `Codes`."""
        self._bits = bits
        self._group = group
        self._order = order
        self.is_batch_invariant = is_batch_invariant

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import integer

        inputs = self._in_order(x.reshape(-1, layer.in_features))
        multiply = integer.invariant if self.is_batch_invariant else integer.multiply
        out = multiply(inputs, self._weight(layer), layer.bias, layer.out_dtype or x.dtype)
        return out.view(*x.shape[:-1], layer.out_features)

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import integer

        return integer.grouped(self._in_order(x), self._weight(layer), layer.bias, routes, self.is_batch_invariant)

    def _in_order(self, x: Tensor) -> Tensor:
        """Activations (rows, inputs) in the order of the weight's inputs."""
        return x if self._order is None else x[:, self._order]

    def _weight(self, layer: Linear) -> "integer.Weight":
        from ...kernels.gpu import integer

        factors, counters = layer.get_buffer("factors"), layer.get_buffer("counters")
        return integer.Weight(layer.weight, factors, counters, self._bits, self._group, layer.in_features)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for a device, which takes compute capability 8.0, and for activations of a dtype."""
    if device.type != "cuda" or not HAS_TRITON or dtype is torch.float32:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def keep(layer: Linear, pieces: Sequence[Weight], is_batch_invariant: bool = False) -> IntegerGpu | None:
    """See `Keeper`. All pieces must be of one form, and their inputs in one order."""
    from ...kernels.gpu import integer

    codes = [piece for piece in pieces if isinstance(piece, Codes)]
    whole = joined(codes) if len(codes) == len(pieces) else None
    if whole is None or not integer.can_pack(layer.in_features, whole.group):
        return None
    weight = integer.pack(whole.codes, whole.scales, whole.zeros, whole.bits)
    layer.weight = nn.Parameter(weight.words, requires_grad=False)
    layer.register_buffer("factors", weight.factors, persistent=False)
    layer.register_buffer("counters", weight.counters, persistent=False)
    return IntegerGpu(whole.bits, weight.group, whole.order, is_batch_invariant)
