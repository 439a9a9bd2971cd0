"""Linear layers. A `LinearMethod` says how they keep their weights and multiply by them."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from ..kernels.routes import Routes
from .sources import Target


class LinearMethod(Protocol):
    """How linear layers keep their weights and multiply by them. One object serves any number of layers."""

    is_batch_invariant: bool
    """Whether the result of a row of activations depends on nothing but that row, to the last bit."""

    def create(self, layer: "Linear") -> None:
        """Register the parameters that a checkpoint fills, with torch's default dtype and on its default device."""
        ...

    def sources(self, layer: "Linear", name: str) -> dict[str, Target]:
        """What fills these parameters; see `Filled`. Each of `layer.parts(name)` has tensors of its own."""
        ...

    def finish(self, layer: "Linear") -> None:
        """Bring the filled parameters into the form that `apply` reads, and free what is no longer needed."""
        ...

    def group_for(self, layer: "Linear", like: Tensor) -> int | None:
        """How many neighbouring inputs share a scale, if `apply` would round activations to FP8.

        What computes them may do that then. They have as many rows as `like` (rows, ...), or are those of its experts,
        and are where it is.
        """
        ...

    def apply(self, layer: "Linear", x: Tensor) -> Tensor:
        """`x @ weight.T + bias` for x (..., in_features): (..., out_features) of the layer's `out_dtype`.

        Where `group_for` asks for them, x may be `Rows` instead.
        """
        ...

    def grouped(self, layer: "Linear", x: Tensor, routes: Routes) -> Tensor:
        """The product of each pair's row with the weight of its expert, of stacked experts: (pairs, outputs).

        x has a row for each pair, or for each token. Where `group_for` asks for them, it may be `Rows` instead.
        """
        ...

    def rows(self, layer: "Linear", at: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `at` (n,) of the weight of a `Head`, in some dtype: (n, in_features)."""
        ...


class Linear(nn.Module):
    """`x @ weight.T + bias`. A layer has no weight until `attach` gives it a method."""

    method: LinearMethod
    weight: Tensor
    """(out_features, in_features), if the method keeps plain numbers; so has `bias` (out_features,)."""
    bias: Tensor | None
    out_dtype: torch.dtype | None = None
    """The dtype of the output; None means that of the input."""
    tied: Tensor | None = None
    """The weight, if it is another module's parameter too."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.has_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)

    def group_for(self, like: Tensor) -> int | None:
        """See `LinearMethod`."""
        return self.method.group_for(self, like)

    def parts(self, name: str) -> dict[str, slice]:
        """The layers of a checkpoint that make up this one, which is called `name` here, and their outputs in it."""
        return {name: slice(0, self.out_features)}

    def sources(self, name: str) -> dict[str, Target]:
        """See `Filled`."""
        return self.method.sources(self, name)


class Head(Linear):
    """The last layer, from hidden states to logits in float32.

    bfloat16 has eight significant bits. In it, logits that differ by as much as 0.1 would become equal, and it would be
    chance which of their tokens is chosen.
    """

    out_dtype = torch.float32

    def __init__(self, in_features: int, out_features: int, tied: Tensor | None) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.tied = tied

    def embeddings(self, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows (n, in_features) of tokens (n,), for a model whose embeddings are this layer's weight."""
        return self.method.rows(self, token_ids, dtype)


class MergedLinear(Linear):
    """Linear layers with the same input as one product, whose output is their outputs side by side.

    One product with a large matrix is faster than several with small ones, most of all for few tokens.
    """

    def __init__(self, in_features: int, sizes: Sequence[int], bias: bool, names: Sequence[str] = ()) -> None:
        """`names` are what checkpoints call the layers; there are none if checkpoints have them merged, too."""
        super().__init__(in_features, sum(sizes), bias)
        self.sizes = list(sizes)
        self.names = names

    def parts(self, name: str) -> dict[str, slice]:
        """See `Linear`."""
        starts = accumulate(self.sizes, initial=0)
        outputs = [slice(start, start + size) for start, size in zip(starts, self.sizes, strict=False)]
        return dict(zip(self.names, outputs, strict=True)) if self.names else super().parts(name)


Choice = Callable[[Linear, Sequence[str]], LinearMethod]
"""The method of a layer, which a checkpoint has as layers of these names."""


def attach(model: nn.Module, choice: Choice) -> None:
    """Give all linear layers of a model their methods, and with these the parameters that are to be filled."""
    for layer in assign(model, choice):
        layer.method.create(layer)


def assign(model: nn.Module, choice: Choice) -> list[Linear]:
    """Give all linear layers of a model, which may be filled already, their methods. Returns the layers."""
    layers = []
    for path, layer in model.named_modules():
        if isinstance(layer, Linear):
            parent, _, name = path.rpartition(".")
            layer.method = choice(layer, [f"{parent}.{part}".lstrip(".") for part in layer.parts(name)])
            layers.append(layer)
    return layers


def change(model: nn.Module, old: LinearMethod, new: LinearMethod) -> None:
    """Give the filled layers that have one method another, by which they are ready to multiply."""
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.method is old:
            layer.method = new
            new.finish(layer)
