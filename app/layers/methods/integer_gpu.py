"""Weights as small whole numbers, multiplied as they are, by the GPU's kernels for them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.ops import HAS_TRITON
from ..formats.base import Weight
from ..formats.codes import Codes, joined
from ..linear import Linear
from .plain import Plain

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

        factors, counters = layer.get_buffer("factors"), layer.get_buffer("counters")
        weight = integer.Weight(layer.weight, factors, counters, self._bits, self._group, layer.in_features)
        inputs = x.reshape(-1, layer.in_features)
        if self._order is not None:
            inputs = inputs[:, self._order]
        multiply = integer.invariant if self.is_batch_invariant else integer.multiply
        out = multiply(inputs, weight, layer.bias, layer.out_dtype or x.dtype)
        return out.view(*x.shape[:-1], layer.out_features)


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
