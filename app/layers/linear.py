"""Linear layers, unfilled until a checkpoint is loaded."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """`x @ weight.T + bias`."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


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
