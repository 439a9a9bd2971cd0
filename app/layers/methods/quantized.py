"""Weights that a checkpoint stores quantized, and weights that are quantized when they are loaded."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...kernels.routes import Routes
from ..formats.base import Format, Weight
from ..linear import Linear, LinearMethod
from ..sources import Target
from .plain import Plain, fill

Keeper = Callable[[Linear, Sequence[Weight]], LinearMethod | None]
"""The method by which a layer, whose outputs are made up of these pieces, multiplies by them as they are.

None if there is none. The method may keep the weight in the layer.
"""
Rounder = Callable[[Linear], Weight | None]
"""What a layer's plain weight becomes; None if it stays as it is."""


class Stored:
    """The method of one layer until its tensors are read. Then the layer gets the one that multiplies.

    Where there is no kernel for the weights, they become plain numbers, and the layer gets the fallback.
    """

    is_batch_invariant = False

    def __init__(self, formats: Mapping[str, Format], fallback: LinearMethod, keep: Keeper, like: Tensor) -> None:
        """`formats`: of each part of the layer, by its name. `like`: of the dtype and where plain numbers will be."""
        self._formats = formats
        self._fallback = fallback
        self._keep = keep
        self._like = like
        self._parts: list[tuple[str, Format, dict[str, Tensor]]] = []

    def create(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        layer.bias = nn.Parameter(torch.empty(layer.out_features), requires_grad=False) if layer.has_bias else None

    def sources(self, layer: Linear, name: str) -> dict[str, Target]:
        """See `LinearMethod`. The tensors are read into memory of the CPU."""
        targets: dict[str, Target] = {}
        for (part, outputs), (full_name, form) in zip(layer.parts(name).items(), self._formats.items(), strict=True):
            tensors = self._add(full_name, form, outputs.stop - outputs.start, layer.in_features)
            targets |= {f"{part}.{kind}": Target(tensor) for kind, tensor in tensors.items()}
            if layer.bias is not None:
                targets[f"{part}.bias"] = Target(layer.bias.data[outputs])
        return targets

    def register(self, layer: Linear) -> None:
        """In the place of `create` and `sources`, for a loader that fills parameters by their names.

        The layer has one part. Parameters are on the device "meta", as those of models are that wait for such a loader.
        """
        for name, form in self._formats.items():
            for kind, tensor in self._add(name, form, layer.out_features, layer.in_features).items():
                layer.register_parameter(kind, nn.Parameter(tensor.to("meta"), requires_grad=False))

    def _add(self, name: str, form: Format, out_features: int, in_features: int) -> dict[str, Tensor]:
        """Memory for the tensors of a part."""
        try:
            wanted = form.tensors(out_features, in_features)
        except ValueError as error:
            raise ModelError(f"{name} cannot be quantized as config.json says: {error}") from None
        tensors = {kind: torch.empty(shape, dtype=dtype, device="cpu") for kind, (shape, dtype) in wanted.items()}
        self._parts.append((name, form, tensors))
        return tensors

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        for _, _, tensors in self._parts:
            for kind in tensors.keys() & dict(layer.named_parameters()).keys():  # see `register`
                tensors[kind] = layer.get_parameter(kind).data
                delattr(layer, kind)
        pieces = [_decode(*part, self._like.device) for part in self._parts]
        self._parts.clear()
        if method := self._keep(layer, pieces):
            layer.method = method
            return
        fill(layer, torch.cat([piece.dense().to(self._like) for piece in pieces]), layer.bias)
        layer.method = self._fallback
        self._fallback.finish(layer)

    def group_for(self, layer: Linear, like: Tensor) -> int | None:
        """A layer has another method when it multiplies."""
        raise NotImplementedError

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """A layer has another method when it multiplies."""
        raise NotImplementedError

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """A layer has another method when it multiplies."""
        raise NotImplementedError

    def rows(self, layer: Linear, at: Tensor, dtype: torch.dtype) -> Tensor:
        """A layer has another method when it is read."""
        raise NotImplementedError


def _decode(name: str, form: Format, tensors: dict[str, Tensor], device: torch.device) -> Weight:
    try:
        piece = form.decode({kind: tensor.to(device) for kind, tensor in tensors.items()})
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from None
    if not piece.is_finite():
        raise ModelError(f"{name} has scales that are no numbers")
    return piece


class Rounded(Plain):
    """Rounds plain weights once they are loaded. Layers that no kernel takes keep them.

    Until then a weight is in memory of the CPU, which takes no room before it is filled. So few are there at a time.
    """

    def __init__(self, to: Rounder, keep: Keeper, fallback: LinearMethod, device: torch.device) -> None:
        """`device`: where weights are rounded and kept."""
        self._to = to
        self._keep = keep
        self._fallback = fallback
        self._device = device

    def create(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        size = layer.out_features, layer.in_features
        weight = torch.empty(size, device="cpu") if layer.tied is None else layer.tied
        fill(layer, weight, torch.empty(layer.out_features) if layer.has_bias else None)

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        plain = layer.weight
        plain.data = plain.data.to(self._device)
        rounded = self._to(layer)
        method = None if rounded is None else self._keep(layer, [rounded])
        layer.method = method or self._fallback
        if method is None:
            self._fallback.finish(layer)
        elif layer.weight is plain:
            plain.data = plain.data.new_empty(0)
