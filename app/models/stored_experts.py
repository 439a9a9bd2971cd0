"""Quantized experts of checkpoints that transformers loads: it stacks their plain weights, but knows no others.

So they are left out of what it reads. Experts of ours stand in the place of its own, and our reader fills them.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..checkpoint.folder import ModelFolder
from ..errors import ModelError
from ..layers.methods import Methods
from ..layers.moe import Stacked
from .experts import form_of, stacked_experts
from .weights import fill_layers, open_files

_OF_EXPERT = re.compile(r"((?:.*\.)?layers\.(\d+)\..*experts)\.\d+\.(\w+)\.\w+")
"""A tensor of an expert: what those of a layer begin with, the layer's number, and the name of a part."""
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""What Mixtral, and families like it, call the parts of an expert."""


class _Mixture(NamedTuple):
    """The experts of a layer, in a checkpoint."""

    prefix: str
    parts: frozenset[str]


class StoredExperts:
    """The quantized experts of a checkpoint."""

    def __init__(self, folder: ModelFolder, methods: Methods, plain: set[str], ignored: Sequence[str]) -> None:
        """`plain`: the names of layers whose weights are plain numbers. `ignored`: patterns of names that transformers
        leaves out, such as those of a draft head.
        """
        self._folder, self._methods = folder, methods
        self._tensors: set[str] = set()
        parts: dict[tuple[int, str], set[str]] = defaultdict(set)
        for open_file in open_files(folder):
            with open_file() as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if (match := _OF_EXPERT.fullmatch(name)) and name.rpartition(".")[0] not in plain:
                        self._tensors.add(name)
                        if not any(re.search(pattern, name) for pattern in ignored):
                            parts[int(match[2]), match[1]].add(match[3])
        self._mixtures = {layer: _Mixture(prefix, frozenset(names)) for (layer, prefix), names in parts.items()}
        if len(self._mixtures) < len(parts):
            raise ModelError(f"{folder.path}: several mixtures of quantized experts in a layer are not supported")
        self._held: list[tuple[str, Stacked]] = []

    def others(self) -> dict[str, Tensor] | None:
        """All tensors but those of quantized experts; None if there are none of these."""
        if not self._tensors:
            return None
        found: dict[str, Tensor] = {}
        for open_file in open_files(self._folder):
            with open_file() as tensors:
                names = [name for name in tensors.keys() if name not in self._tensors]  # noqa: SIM118
                found |= {name: tensors.get_tensor(name) for name in names}
        return found

    def hold(self, model: nn.Module) -> None:
        """Put ours in the place of the experts of one of transformers' models. ModelError for those of another form."""
        waiting = dict(self._mixtures)
        for path, experts in list(stacked_experts(model)):
            match = _LAYER.match(path)
            if match is None or (mixture := waiting.pop(int(match[1]), None)) is None:
                continue
            if (form := form_of(experts)) is None:
                raise self._refusal(f"of the form of {type(experts).__name__}")
            names = [name if name in mixture.parts else _MIXTRAL[name] for name in form.names]
            ours = form.make(experts.get_parameter("down_proj").shape, names)
            for layer in ours.children():
                if isinstance(layer, Stacked):
                    self._give_method(layer, mixture.prefix)
            model.set_submodule(path, ours)
        if waiting:
            raise self._refusal(f"as {next(iter(waiting.values())).prefix} are")

    def _refusal(self, what: str) -> ModelError:
        return ModelError(f"{self._folder.path}: quantized experts {what} are not supported")

    def _give_method(self, layer: Stacked, prefix: str) -> None:
        method = self._methods.stored([f"{prefix}.{name}" for name in layer.names])
        if method is None:
            raise ModelError(f"{self._folder.path}: nothing says how {prefix}.{layer.names[0]} is stored")
        layer.method = method
        method.create(layer)
        self._held.append((prefix, layer))

    def fill(self) -> None:
        """Read the experts into what holds them. ModelError names a tensor that is missing, or does not fit."""
        fill_layers(self._held, self._folder)
        self._held.clear()
