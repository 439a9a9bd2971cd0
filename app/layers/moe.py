"""Mixtures of experts (Shazeer et al., 2017): each token passes the few feed-forward layers that a router chooses.

Experts are stacked: what is one linear layer in each expert is one layer here, whose weight has the outputs of one
expert after those of the other. So experts have the methods, formats and loading of other layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels.ops import Clamped, clamped, combine, gated, rounded_gated, route, router_logits
from ..kernels.routes import Routes
from ..kernels.rows import Rows
from .linear import MergedLinear
from .sources import Target


class Stacked(MergedLinear):
    """A linear layer of each expert, with (num_experts * outputs) outputs in all.

    Checkpoints have tensors for each expert, such as `3.gate_proj.weight`, or the plain weights of all as one tensor of
    the layer's own name (num_experts, outputs, in_features).
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        sizes: Sequence[int],
        names: Sequence[str],
        bias: bool = False,
        inputs_first: bool = False,
    ) -> None:
        """`sizes` and `names`: of the layers of an expert that this one is made of, side by side. `inputs_first`: the
        tensor of all is (num_experts, in_features, outputs).
        """
        of_all = [f"{expert}.{name}" for expert in range(num_experts) for name in names]
        super().__init__(in_features, list(sizes) * num_experts, bias=bias, names=of_all)
        self.num_experts = num_experts
        self.inputs_first = inputs_first

    def forward(self, x: Tensor, routes: Routes) -> Tensor:  # type: ignore[override]
        """The outputs of each pair's expert (pairs, outputs), for x with a row for each pair, or for each token."""
        return self.method.grouped(self, x, routes)

    def sources(self, name: str) -> dict[str, Target]:
        """See `Filled`."""
        sources = super().sources(name)
        if "weight" in dict(self.named_parameters(recurse=False)):
            weight = self.weight.data.unflatten(0, (self.num_experts, -1))
            sources[name] = Target(weight.transpose(1, 2) if self.inputs_first else weight)
        if self.bias is not None:
            sources[f"{name}_bias"] = Target(self.bias.data.unflatten(0, (self.num_experts, -1)))
        return sources


class Experts(nn.Module):
    """The experts alone: gated feed-forward layers whose results are added up, with the weights of routes."""

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: str | Clamped,
        names: Sequence[str],
        bias: bool = False,
        inputs_first: bool = False,
    ) -> None:
        """`names`: of gate, up and down projection of an expert, in checkpoints; gate and up may be one. `activation`:
        see `gated`. `inputs_first`: see `Stacked`.
        """
        super().__init__()
        *into, back = names
        sizes = [2 * intermediate_size // len(into)] * len(into)
        self.gate_up_proj = Stacked(num_experts, hidden_size, sizes, into, bias, inputs_first)
        self.down_proj = Stacked(num_experts, intermediate_size, (hidden_size,), (back,), bias, inputs_first)
        self.activation = activation

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """For x (tokens, hidden_size): the same shape."""
        gate_up = self.gate_up_proj(x, routes)
        if isinstance(self.activation, Clamped):
            inner: Tensor | Rows = clamped(gate_up, self.activation)
        elif group := self.down_proj.group_for(x):
            inner = rounded_gated(gate_up, self.activation, group)
        else:
            inner = gated(gate_up, self.activation)
        return combine(self.down_proj(inner, routes), routes.weights)


class Router(nn.Module):
    """Chooses the experts of each token. It is small and decides much, so it is never quantized."""

    def __init__(self, num_experts: int, hidden_size: int, top_k: int, normalizes: bool, bias: bool = False) -> None:
        """`normalizes`: whether the weights of the experts that are chosen add up to 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if bias else None
        self.top_k = top_k
        self.normalizes = normalizes

    def forward(self, x: Tensor, is_batch_invariant: bool) -> Routes:
        """For x (tokens, hidden_size). `is_batch_invariant`: whether the experts' products are."""
        scores = router_logits(x, self.weight, is_batch_invariant)
        return route(scores if self.bias is None else scores + self.bias, self.top_k, self.normalizes)


class MixtureOfExperts(nn.Module):
    """A router and its experts, in the place of a feed-forward layer."""

    def __init__(self, router: Router, experts: Experts, name: str = "gate") -> None:
        """`name`: of the router, in checkpoints."""
        super().__init__()
        self.add_module(name, router)
        self._router = name
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """For x (tokens, hidden_size): the same shape."""
        routes = self.get_submodule(self._router)(x, self.experts.gate_up_proj.method.is_batch_invariant)
        out: Tensor = self.experts(x, routes)
        return out
