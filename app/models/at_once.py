"""Chooses what computes the recurrent layers of transformers' models."""

import logging
from dataclasses import replace

from ..layers.recurrent import Recurrent
from .gated_delta import GatedDelta
from .loader import LoadedModel
from .recurrent import RecurrentModule
from .stand_ins import AtOnce

log = logging.getLogger(__name__)


def compute_at_once(loaded: LoadedModel) -> LoadedModel:
    """Have a model's recurrent layers compute steps at once. The model stays as it is if one of them cannot."""
    modules = [of for of in loaded.recurrent_layers if isinstance(of, RecurrentModule)]
    chosen: dict[type, type[AtOnce]] = {}
    for name, of in {type(of.module): of for of in modules}.items():  # those of one class are alike
        kind = _choose(of)
        if kind is None:
            return loaded
        chosen[name] = kind
    layers: list[Recurrent] = [chosen[type(of.module)](of) for of in modules]
    paths = {module: path for path, module in loaded.model.named_modules()}
    for of, layer in zip(modules, layers, strict=True):
        loaded.model.set_submodule(paths[of], layer)
    log.info("kernels for %d layers that keep states: %s", len(layers), ", ".join(name.__name__ for name in chosen))
    return replace(loaded, recurrent_layers=layers, continues_prompts=True)


def _choose(of: RecurrentModule) -> type[AtOnce] | None:
    """What computes the same as a module, the fastest first."""
    reason: Exception | None = None
    for kind in (GatedDelta, AtOnce):
        try:
            kind(of).check(of)
        except Exception as error:  # whatever else the module wants of the functions, or has
            reason = error
        else:
            return kind
    log.info("steps are not recorded: there are no kernels for %s: %s", type(of.module).__name__, reason)
    return None
