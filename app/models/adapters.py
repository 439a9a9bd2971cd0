"""The adapters of a model: which layers take them, and how a folder of PEFT's fills a slot."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.adapter import AdapterConfig, read_adapter
from ..errors import ModelError
from ..layers.adapters import Adapted
from ..layers.linear import Head, Linear
from ..layers.moe import Stacked
from ..layers.recurrent import Recurrent
from .weights import reading

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_UNSUPPORTED = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_A": "an adapter of embeddings",
    "lora_embedding_B": "an adapter of embeddings",
    "modules_to_save": "a whole module (modules_to_save)",
    "bias": "a bias",
}
"""Parts of tensors' names, and what has them."""


class _Place(NamedTuple):
    """A layer as adapters know it: a part of one here."""

    method: Adapted
    part: int
    inputs: int
    outputs: int


class ModelAdapters:
    """Room for some adapters at once. A slot is filled while steps run that do not use it."""

    def __init__(self, model: nn.Module, num_slots: int, rank: int, like: Tensor) -> None:
        """Give a loaded model's layers room. `rank`: the largest that fits; `like`: see `Adapted`."""
        self.rank = rank
        self._like = like
        self._places: dict[str, _Place] = {}
        layers = dict(adaptable(model))
        for names, layer in layers.values():
            sizes = [size for _, size in names]
            layer.method = method = Adapted(layer, sizes, num_slots, rank, like)
            for part, (name, size) in enumerate(names):
                self._places[name] = _Place(method, part, layer.in_features, size)
        log.info(
            "room for %d adapters of rank %d in %d linear layers (%.2f GiB)",
            num_slots, rank, len(layers), sum(map(_bytes_of, self._methods)) / 2**30,
        )  # fmt: skip

    @property
    def _methods(self) -> list[Adapted]:
        return list(dict.fromkeys(place.method for place in self._places.values()))

    @torch.inference_mode()
    def load(self, slot: int, folder: Path) -> None:
        """Fill a slot, and return when it can be used. ModelError names a key or a tensor that does not fit."""
        config = read_adapter(folder)
        if config.largest_rank > self.rank:
            raise ModelError(f"{folder} has rank {config.largest_rank}, and max_lora_rank is {self.rank}")
        parts: dict[Adapted, dict[int, tuple[Tensor, Tensor]]] = defaultdict(dict)
        for name, (a, b) in self._read(config).items():
            place = self._places[name]
            parts[place.method][place.part] = a, self._scaled(b, name, config)
        for method in self._methods:
            method.fill(slot, parts.get(method, {}))
        if self._like.is_cuda:
            torch.cuda.current_stream().synchronize()

    def _scaled(self, b: Tensor, layer: str, config: AdapterConfig) -> Tensor:
        """A layer's B times its scale, in the model's dtype."""
        scaled = (b.float() * config.scale_of(layer)).to(self._like.dtype)
        if not scaled.isfinite().all():
            raise ModelError(f"{config.path}: lora_alpha makes B of {layer} too large for {self._like.dtype}")
        return scaled

    def _read(self, config: AdapterConfig) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of each layer that has them."""
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        with reading(config.weights) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                layer, kind = self._layer_of(name, config)
                tensor = found[layer][kind] = tensors.get_tensor(name)
                place, rank = self._places[layer], config.rank_of(layer)
                wanted = (rank, place.inputs) if kind == "A" else (place.outputs, rank)
                if tuple(tensor.shape) != wanted:
                    raise ModelError(f"{config.path}: {name} has shape {tuple(tensor.shape)}, not {wanted}")
                if not (tensor.is_floating_point() and tensor.to(self._like.dtype).isfinite().all()):
                    raise ModelError(f"{config.path}: {name} has values that are no numbers")
        for layer, matrices in found.items():
            if len(matrices) < 2:
                raise ModelError(f"{config.path} has only lora_{min(matrices)} of {layer}")
        if not found:
            raise ModelError(f"{config.weights} has no tensors")
        return {layer: (matrices["A"], matrices["B"]) for layer, matrices in found.items()}

    def _layer_of(self, name: str, config: AdapterConfig) -> tuple[str, str]:
        """The layer that a tensor belongs to, and which of its matrices it is, A or B."""
        layer, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            what = next((what for part, what in _UNSUPPORTED.items() if part in name.split(".")), "no matrix of LoRA")
            raise ModelError(f"{config.path}: {name} is {what}, which is not supported")
        if layer not in self._places:
            raise ModelError(f"{config.path}: {name} is for {layer}, which is no linear layer here that takes adapters")
        return layer, kind[0]


def adaptable(model: Any) -> dict[str, tuple[list[tuple[str, int]], Linear]]:
    """The layers of a loaded model that take adapters, by their paths, with the names and sizes of their parts.

    Names are those that transformers' model has. Those are the layers that see each of a step's tokens once.
    """
    prefix, outer = _names(model)
    found = {}
    seen = model.layers_of_all_tokens() if prefix else None
    # What keeps states stands in the place of transformers' module, which it holds.
    held = {f"{path}.module.": f"{path}." for path, module in model.named_modules() if isinstance(module, Recurrent)}
    for path, layer in model.named_modules():
        if not isinstance(layer, Linear) or isinstance(layer, Head | Stacked) or not (seen is None or layer in seen):
            continue
        told = next((path.replace(inner, outer) for inner, outer in held.items() if path.startswith(inner)), path)
        parent, _, name = told.removeprefix(prefix).rpartition(".")
        parts = [
            (f"{outer}.{parent}.{part}", outputs.stop - outputs.start) for part, outputs in layer.parts(name).items()
        ]
        found[path] = parts, layer
    return found


def _names(model: Any) -> tuple[str, str]:
    """How paths of a model's body begin here, and in transformers' model."""
    return ("", "model") if not hasattr(model, "body") else ("body.", model.head.base_model_prefix)


def _bytes_of(method: Adapted) -> int:
    return method.adapters.a.nbytes + method.adapters.b.nbytes
