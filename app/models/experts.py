"""Stacked experts of transformers' models, as Paceline's: whose weights may be rounded, or stored quantized.

transformers keeps the experts of a layer as two parameters of three dimensions, and its models choose experts by
themselves. What experts compute is tried on small random weights of their shape.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.ops import ACTIVATIONS, combine, routes_of
from ..layers.methods.plain import PLAIN, fill
from ..layers.moe import Experts, Stacked
from .trials import SCALES, are_same

_WIDTH, _INNER = 16, 8
"""Of a trial's weights."""


class ChosenExperts(Experts):
    """Gated experts, as transformers' models call them."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, routes_of(top_k_index, top_k_weights, self.gate_up_proj.num_experts))


class UngatedExperts(nn.Module):
    """Experts of two layers, with the square of what is positive between them, called in the same way."""

    def __init__(self, num_experts: int, width: int, inner: int, names: Sequence[str]) -> None:
        super().__init__()
        into, back = names
        self.up_proj = Stacked(num_experts, width, (inner,), (into,))
        self.down_proj = Stacked(num_experts, inner, (width,), (back,))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        routes = routes_of(top_k_index, top_k_weights, self.up_proj.num_experts)
        inner = self.up_proj(hidden_states, routes).relu().square()
        return combine(self.down_proj(inner, routes), routes.weights)


Ours = ChosenExperts | UngatedExperts


class Form(NamedTuple):
    """What experts compute."""

    activation: str | None
    """Of gates, one of ACTIVATIONS; None: there are no gates."""
    names: tuple[str, ...]
    """Of an expert's layers, in transformers' words."""

    def make(self, shape: torch.Size, names: Sequence[str] = ()) -> Ours:
        """Experts without weights, for those of a shape: that of the last parameter, (experts, width, inner).

        `names`: of an expert's layers in a checkpoint.
        """
        count, width, inner = shape
        if self.activation is None:
            return UngatedExperts(count, width, inner, names or self.names)
        return ChosenExperts(count, width, inner, self.activation, names or self.names)


_FORMS = {
    "gate_up_proj": [Form(activation, ("gate_proj", "up_proj", "down_proj")) for activation in ACTIVATIONS],
    "up_proj": [Form(None, ("up_proj", "down_proj"))],
}
"""By the name of the first parameter."""


def stacked_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model that are experts of transformers', of whatever form, with their paths."""
    for path, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if parameters.keys() & _FORMS.keys() and parameters["down_proj"].dim() == 3:
            yield path, module


@torch.inference_mode()
def form_of(experts: nn.Module) -> Form | None:
    """What experts compute; None if that is nothing that Paceline's do."""
    parameters = dict(experts.named_parameters())
    first = next((name for name in _FORMS if parameters.keys() == {name, "down_proj"}), None)
    if first is None or any(parameter.dim() != 3 for parameter in parameters.values()):
        return None
    into, (count, width, inner) = parameters[first].shape, parameters["down_proj"].shape
    wide = 2 if first == "gate_up_proj" else 1
    if into != (count, wide * inner, width):
        return None
    with torch.device("cpu"):  # transformers may be making modules without memory
        small = _smaller(experts, {first: (count, wide * _INNER, _WIDTH), "down_proj": (count, _WIDTH, _INNER)})
        x = torch.randn(3, _WIDTH, dtype=torch.float32)
        weights, chosen = torch.rand(3, count, dtype=torch.float32).topk(min(2, count))
        for form in _FORMS[first]:
            ours = form.make(torch.Size((count, _WIDTH, _INNER)))
            take_weights(ours, small)
            try:
                if all(are_same(small, ours, scale * x, chosen, weights) for scale in SCALES):
                    return form
            except (TypeError, RuntimeError):  # they are called in another way, as Llama 4's are
                return None
    return None


def _smaller(experts: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """The same module with small random weights, which computes by its own code, and by no kernels of a GPU."""
    small: Any = copy.copy(experts)
    if hasattr(small, "config"):
        small.config = copy.copy(small.config)
        small.config._experts_implementation = "eager"
    small._parameters = {
        name: nn.Parameter(torch.randn(shape, dtype=torch.float32), requires_grad=False)
        for name, shape in shapes.items()
    }
    smaller: nn.Module = small
    return smaller


def take_weights(ours: Ours, experts: nn.Module) -> None:
    """Have experts of ours multiply by the weights of transformers', which they share."""
    for name, layer in ours.named_children():
        if isinstance(layer, Stacked):
            fill(layer, experts.get_parameter(name).flatten(0, 1), None)
            layer.method = PLAIN
