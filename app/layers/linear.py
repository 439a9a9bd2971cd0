"""Linear layers. How they keep their weights and multiply by them is a method's business, of `app.layers.methods`."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from app.layers.sources import Target


class LinearMethod(Protocol):
    """How linear layers keep their weights and multiply by them. An object serves any number of layers."""

    def create(self, layer: "Linear") -> None:
        """Register the parameters that a checkpoint fills, with torch's default dtype and on its default device."""
        ...

    def sources(self, layer: "Linear", name: str) -> dict[str, Target]:
        """What fills them, as `Filled` has it. Each of `layer.parts(name)` has tensors of its own."""
        ...

    def finish(self, layer: "Linear") -> None:
        """Once they are filled: bring them into the form that `apply` wants, and free what is no longer needed."""
        ...

    def apply(self, layer: "Linear", x: Tensor) -> Tensor:
        """`x @ weight.T + bias` for x (..., in_features), in the layer's `out_dtype`."""
        ...


class Part(NamedTuple):
    """Outputs of a linear layer that a checkpoint has as a layer by itself."""

    name: str
    outputs: slice


class Linear(nn.Module):
    """`x @ weight.T + bias`. It has no weight before `attach` gives it a method."""

    method: LinearMethod
    weight: Tensor
    """Of plain methods, as is the bias."""
    bias: Tensor | None
    out_dtype: torch.dtype | None = None
    """Of the output; None: the input's."""
    tied: Tensor | None = None
    """The weight, where another module has it already."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.has_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)

    def parts(self, name: str) -> list[Part]:
        """What a checkpoint calls the layer, which is `name` in the model."""
        return [Part(name, slice(0, self.out_features))]

    def sources(self, name: str) -> dict[str, Target]:
        """See `Filled`."""
        return self.method.sources(self, name)


class Head(Linear):
    """The last layer, from hidden states to logits in float32.

    A bfloat16 has eight bits: rounding makes equals of logits that are as far apart as 0.1, and so chooses tokens by
    chance.
    """

    out_dtype = torch.float32

    def __init__(self, in_features: int, out_features: int, tied: Tensor | None) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.tied = tied


class MergedLinear(Linear):
    """Linear layers of one input, as one product: its output is theirs side by side.

    One product of a large matrix is faster than several of small ones, most of all for few tokens.
    """

    def __init__(self, in_features: int, sizes: Sequence[int], bias: bool, names: Sequence[str] = ()) -> None:
        """`names` are what checkpoints call the layers; none if they are merged there, too."""
        super().__init__(in_features, sum(sizes), bias)
        self.sizes = list(sizes)
        self.names = names

    def parts(self, name: str) -> list[Part]:
        """See `Linear`."""
        if not self.names:
            return super().parts(name)
        starts = accumulate(self.sizes[:-1], initial=0)
        return [
            Part(part, slice(start, start + size))
            for part, start, size in zip(self.names, starts, self.sizes, strict=True)
        ]


def linears(model: nn.Module) -> Iterator[Linear]:
    """All linear layers of a model, of this kind."""
    return (module for module in model.modules() if isinstance(module, Linear))


def attach(model: nn.Module, method: LinearMethod) -> None:
    """Give all linear layers of a model a method, and by it the parameters that are to be filled."""
    for layer in linears(model):
        layer.method = method
        method.create(layer)


def finish(model: nn.Module, method: LinearMethod) -> None:
    """Make the filled layers of a model ready to multiply. Layers with plain weights get the method only here."""
    for layer in linears(model):
        layer.method = method
        method.finish(layer)
