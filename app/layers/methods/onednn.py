"""Weights in the order that oneDNN's CPU kernels read. This is the only file that calls torch's private operations."""

import torch
from torch import Tensor

from ...kernels.ops import refine_largest
from ..linear import Linear
from ..moe import Stacked
from .plain import Plain


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16. Without them it converts every weight at every use."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class OneDnn(Plain):
    """Reorders a weight once it is filled; otherwise oneDNN's kernels would do so in every product.

    It takes float32 on any CPU, and bfloat16 on a CPU that has instructions for it.
    """

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`. The plain weight is freed, unless it is needed to compute the largest logits again.

        oneDNN has no product of experts, so that their weights stay as they are.
        """
        if isinstance(layer, Stacked):
            return
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
        if layer.out_dtype is None:
            layer.weight.data = layer.weight.data.new_empty(0)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.packed, layer.bias, "none", [], "")
        if layer.out_dtype is None or layer.out_dtype is x.dtype:
            return out
        return refine_largest(out, x, layer.weight)
