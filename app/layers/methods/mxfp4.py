"""Stacked experts in MXFP4. A GPU multiplies their codes as they are; for other devices they become plain numbers."""

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...kernels.ops import HAS_TRITON
from ...kernels.routes import Routes
from ..formats.mxfp4 import GROUP, dense
from ..linear import Linear, LinearMethod
from ..moe import Stacked
from ..sources import Target
from .plain import Plain, fill

_NO_NUMBER = 255
"""A scale that stands for none."""


class Mxfp4(Plain):
    """Keeps codes and scales, which are stored as (experts, outputs, groups, 16) and (experts, outputs, groups).

    Where there is no kernel for them, a filled layer gets the method `fallback`.
    """

    def __init__(self, fallback: LinearMethod, like: Tensor, has_kernel: bool) -> None:
        """`like`: of the dtype of activations. `has_kernel`: see there."""
        self._fallback = fallback
        self._dtype = like.dtype
        self._has_kernel = has_kernel

    def create(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        if layer.in_features % GROUP:
            raise ValueError(f"{layer.in_features} inputs are not whole groups of {GROUP}, as MXFP4 has them")
        sizes = layer.in_features // 2, layer.in_features // GROUP
        for name, size in zip(("blocks", "scales"), sizes, strict=True):
            codes = torch.empty(layer.out_features, size, dtype=torch.uint8)
            layer.register_parameter(name, nn.Parameter(codes, requires_grad=False))
        layer.bias = nn.Parameter(torch.empty(layer.out_features), requires_grad=False) if layer.has_bias else None

    def sources(self, layer: Linear, name: str) -> dict[str, Target]:
        """See `LinearMethod`: the tensors of all experts."""
        assert isinstance(layer, Stacked)
        blocks, scales = (
            layer.get_parameter(kind).data.unflatten(0, (layer.num_experts, -1)) for kind in ("blocks", "scales")
        )
        return {f"{name}_blocks": Target(blocks.unflatten(2, (-1, GROUP // 2))), f"{name}_scales": Target(scales)}

    def draw(self, layer: Linear) -> None:
        """Fill a layer with random numbers, of about the size that an untrained model's have."""
        layer.get_parameter("blocks").random_(0, 256)
        layer.get_parameter("scales").fill_(120)

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        blocks, scales = layer.get_parameter("blocks"), layer.get_parameter("scales")
        largest = int(scales.max())
        if largest == _NO_NUMBER:
            raise ModelError("weights in MXFP4 have scales that are no numbers")
        if self._has_kernel:
            from ...kernels.gpu import mxfp4

            if largest <= mxfp4.LARGEST_SCALE:
                blocks.data, scales.data = mxfp4.pack(blocks.data, scales.data)
                return
        bias = layer.bias
        del layer.blocks, layer.scales
        fill(layer, dense(blocks.data, scales.data, self._dtype), None if bias is None else bias.data)
        layer.method = self._fallback
        layer.method.finish(layer)

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        from ...kernels.gpu import mxfp4

        weight = mxfp4.Weight(layer.get_parameter("blocks"), layer.get_parameter("scales"))
        return mxfp4.grouped(x, weight, layer.bias, routes)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a device, and for activations of a dtype."""
    return device.type == "cuda" and HAS_TRITON and dtype is not torch.float32
