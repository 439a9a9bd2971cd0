"""Weights in the order that oneDNN's kernels want on a CPU. All of torch's private operations stand here."""

import torch
from torch import Tensor

from app.kernels.ops import refine_largest
from app.layers.linear import Linear
from app.layers.methods.plain import Plain


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16: without, it converts every weight at every use."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class OneDnn(Plain):
    """Reorders a weight once, when it is filled: otherwise oneDNN's kernels do so in every product.

    For float32, and for bfloat16 where the CPU has instructions for it.
    """

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`. The weight is empty then, unless it is needed for the largest logits."""
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
        if layer.out_dtype is None:
            layer.weight.data = layer.weight.data.new_empty(0)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.packed, layer.bias, "none", [], "")
        if layer.out_dtype is None or layer.out_dtype is x.dtype:
            return out
        return refine_largest(out, x, layer.weight)
