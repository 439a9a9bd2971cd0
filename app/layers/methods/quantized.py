"""Weights that a checkpoint stores quantized, and weights that are quantized when they are loaded."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..formats.base import Format
from ..formats.codes import Codes, quantize
from ..linear import Head, Linear, LinearMethod
from ..sources import Target
from .integer import Integer, fits
from .plain import Plain, fill

_GROUP = 32
"""Inputs that share a scale, of weights that are quantized when they are loaded."""


class Stored:
    """The method of one layer until its tensors are read. Then the layer gets the one that multiplies.

    Where there is no kernel for the weights, they become plain numbers, and the layer gets the fallback.
    """

    def __init__(self, formats: Mapping[str, Format], fallback: LinearMethod, is_kept: bool) -> None:
        """`formats`: of each part of the layer, by its name. `is_kept`: whether there is a kernel for codes."""
        self._formats = formats
        self._fallback = fallback
        self._is_kept = is_kept
        self._parts: list[tuple[str, Format, dict[str, Tensor]]] = []

    def create(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        self._like = torch.empty(0)
        layer.bias = nn.Parameter(torch.empty(layer.out_features), requires_grad=False) if layer.has_bias else None

    def sources(self, layer: Linear, name: str) -> dict[str, Target]:
        """See `LinearMethod`. The tensors are read into memory of the CPU."""
        targets: dict[str, Target] = {}
        for (part, outputs), (full_name, form) in zip(layer.parts(name).items(), self._formats.items(), strict=True):
            try:
                wanted = form.tensors(outputs.stop - outputs.start, layer.in_features)
            except ValueError as error:
                raise ModelError(f"{full_name} cannot be quantized as config.json says: {error}") from None
            tensors = {kind: torch.empty(shape, dtype=dtype, device="cpu") for kind, (shape, dtype) in wanted.items()}
            self._parts.append((full_name, form, tensors))
            targets |= {f"{part}.{kind}": Target(tensor) for kind, tensor in tensors.items()}
            if layer.bias is not None:
                targets[f"{part}.bias"] = Target(layer.bias.data[outputs])
        return targets

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        pieces = [_decode(*part) for part in self._parts]
        self._parts.clear()
        if self._is_kept and all(fits(piece) for piece in pieces):
            layer.method = Integer([piece for piece in pieces if isinstance(piece, Codes)])
            return
        weight = torch.cat([piece.dense() if isinstance(piece, Codes) else piece for piece in pieces])
        fill(layer, weight.to(self._like), layer.bias)
        layer.method = self._fallback
        self._fallback.finish(layer)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """A layer has another method when it multiplies."""
        raise NotImplementedError


def _decode(name: str, form: Format, tensors: dict[str, Tensor]) -> Codes | Tensor:
    try:
        piece = form.decode(tensors)
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from None
    numbers = (piece.scales, piece.zeros) if isinstance(piece, Codes) else (piece,)
    if not all(bool(part.isfinite().all()) for part in numbers):
        raise ModelError(f"{name} has scales that are no numbers")
    return piece


class Rounded(Plain):
    """Rounds plain weights to whole numbers of 8 or 4 bits, in groups of 32 inputs, once they are loaded.

    The last layer always has 8 bits: with 4, small models choose other words. Layers that the kernel does not take keep
    plain weights.
    """

    def __init__(self, bits: int, fallback: LinearMethod) -> None:
        self._bits = bits
        self._fallback = fallback

    def finish(self, layer: Linear) -> None:
        """See `LinearMethod`."""
        weight = layer.weight.data
        group = _GROUP if weight.shape[1] % _GROUP == 0 else weight.shape[1]
        codes = quantize(weight, 8 if isinstance(layer, Head) else self._bits, group)
        if not fits(codes):
            layer.method = self._fallback
            self._fallback.finish(layer)
            return
        layer.method = Integer([codes])
        layer.weight.data = weight.new_empty(0)
