"""Weights as plain numbers, the way most checkpoints have them."""

import torch
from torch import Tensor, nn

from ...kernels.ops import grouped, linear, logits, take_rows
from ...kernels.routes import Routes
from ..linear import Linear
from ..sources import Target


class Plain:
    """Keeps the weight and the bias in the dtype that the model computes in."""

    is_batch_invariant = False

    def create(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        weight = torch.empty(layer.out_features, layer.in_features) if layer.tied is None else layer.tied
        fill(layer, weight, torch.empty(layer.out_features) if layer.has_bias else None)

    def sources(self, layer: Linear, name: str) -> dict[str, Target]:
        """See `LinearMethod`."""
        parts, parameters = layer.parts(name), dict(layer.named_parameters(recurse=False))
        return {
            f"{part}.{kind}": Target(parameter.data[outputs])
            for part, outputs in parts.items()
            for kind, parameter in parameters.items()
        }

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""

    def group_for(self, layer: Linear, like: Tensor) -> int | None:  # noqa: ARG002
        """See `LinearMethod`."""
        return None

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        if layer.out_dtype is None:
            return linear(x, layer.weight, layer.bias)
        return logits(x, layer.weight)

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        return grouped(x, layer.weight, layer.bias, routes)

    def rows(self, layer: Linear, at: Tensor, dtype: torch.dtype) -> Tensor:
        """See `LinearMethod`."""
        return take_rows(layer.weight, at, dtype)


PLAIN = Plain()


def fill(layer: Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer a weight and a bias that exist already."""
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def adopt_all(model: nn.Module) -> None:
    """Replace all linear layers in another library's model by Paceline's."""
    for name, child in model.named_children():
        if type(child) is nn.Linear:
            setattr(model, name, adopt(child))
        else:
            adopt_all(child)


def adopt(layer: nn.Linear) -> Linear:
    """A layer of Paceline's that shares the memory of another library's."""
    ours = Linear(layer.in_features, layer.out_features, layer.bias is not None)
    fill(ours, layer.weight.data, None if layer.bias is None else layer.bias.data)
    ours.method = PLAIN
    return ours
