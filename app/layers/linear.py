"""Linear layers, unfilled until a checkpoint is loaded."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.kernels.ops import linear, logits, refine_largest


class Linear(nn.Module):
    """`x @ weight.T + bias`."""

    keeps_weight = False

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
            return out
        return linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Reorder the filled weight, once, as oneDNN's kernels want it: otherwise they do so in every product.

        Only for bfloat16 on a CPU that is fast at it. A packed layer's `weight` is empty then: nobody needs it twice.
        """
        if self.weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)
            if not self.keeps_weight:
                self.weight.data = self.weight.data.new_empty(0)


class Head(Linear):
    """The last layer, from hidden states to logits in float32."""

    keeps_weight = True  # for the largest logits

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return refine_largest(super().forward(x), x, self.weight)
        return logits(x, self.weight)


class MergedLinear(Linear):
    """Linear layers of one input, as one product: its output is theirs side by side.

    One product of a large matrix is faster than several of small ones, most of all for few tokens.
    """

    def __init__(self, in_features: int, out_features: Sequence[int], bias: bool) -> None:
        super().__init__(in_features, sum(out_features), bias)
        self.sizes = list(out_features)

    def part(self, kind: str, index: int) -> Tensor:
        """The part of the "weight" or "bias" that belongs to layer `index`, as a view to be filled."""
        whole: Tensor = getattr(self, kind).data
        return whole.split(self.sizes)[index]


class PackedLinear(nn.Module):
    """A linear layer of another library's model on a CPU: the weight as oneDNN's kernels want it, the bias within."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._bias = layer.bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out


def pack_linear_layers(model: nn.Module) -> None:
    """Replace all nn.Linear of a model that only runs on the CPU from now on."""
    for name, child in model.named_children():
        if type(child) is nn.Linear:
            setattr(model, name, PackedLinear(child))
        else:
            pack_linear_layers(child)
