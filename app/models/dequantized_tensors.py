"""Reads the safetensors files of a quantized checkpoint as plain numbers, for models whose tensors have other names.

Such names may stand for parts of a layer, by rows that quantized weights cannot always be cut into.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.quantization import Quantization
from ..errors import ModelError
from ..layers.formats import format_of
from ..layers.formats.base import Format

_PLAIN = {"weight", "bias"}
_RECENT = 8
"""Layers that are kept: their rows are read in pieces, by several readers."""


class DequantizedTensors:
    """What `safetensors.safe_open` gives for one file, of several: a layer's tensors may be in different ones."""

    def __init__(self, files: Sequence[Any], quantization: Quantization) -> None:
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict
        kinds: dict[str, set[str]] = defaultdict(set)
        for name in self._files:
            layer, _, kind = name.rpartition(".")
            kinds[layer].add(kind)
        schemes = {layer: quantization.scheme(layer) for layer, found in kinds.items() if not found <= _PLAIN}
        self._layers = {
            layer: _Layer(format_of(scheme), kinds[layer] - {"bias"})
            for layer, scheme in schemes.items()
            if scheme is not None
        }
        self._weight_of = lru_cache(_RECENT)(self._decode)

    def keys(self) -> Sequence[str]:
        """The names of all tensors."""
        parts = {f"{name}.{kind}" for name, layer in self._layers.items() for kind in layer.kinds}
        return [*(name for name in self._files if name not in parts), *(f"{name}.weight" for name in self._layers)]

    def get_slice(self, name: str) -> Any:
        """A tensor, of which the rows that an index names will be read. ModelError names one that is broken."""
        layer = name.removesuffix(".weight")
        return _Numbers(self._weight_of(layer)) if layer in self._layers else self._files[name].get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        layer = name.removesuffix(".weight")
        tensor: Tensor = self._weight_of(layer) if layer in self._layers else self._files[name].get_tensor(name)
        return tensor

    def _decode(self, name: str) -> Tensor:
        layer = self._layers[name]
        stored = {kind: self._files[f"{name}.{kind}"].get_tensor(f"{name}.{kind}") for kind in layer.kinds}
        try:
            weight = layer.form.decode(stored).dense()
            wanted = {kind: wanted.shape for kind, wanted in layer.form.tensors(*weight.shape).items()}
        except KeyError as error:
            raise ModelError(f"the checkpoint lacks {name}.{error.args[0]}") from None
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{name}: {error}") from None
        if found := {kind: tuple(tensor.shape) for kind, tensor in stored.items() if wanted.get(kind) != tensor.shape}:
            raise ModelError(f"{name} has {found}, and not {wanted}")
        if not torch.isfinite(weight).all():
            raise ModelError(f"{name} has scales that are no numbers")
        return weight


@dataclass(frozen=True)
class _Layer:
    """How the weight of a layer is stored."""

    form: Format
    kinds: set[str]


@dataclass(frozen=True)
class _Numbers:
    """A tensor in memory, as a file gives one."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        """In torch's order."""
        return [*self.tensor.shape]

    def get_dtype(self) -> str:
        """safetensors' name of it."""
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]
