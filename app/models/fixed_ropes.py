"""Rotary embeddings whose frequencies transformers chooses by the longest request of a batch: they are chosen once.

So no request changes another's result. The choice is the one for requests of `max_model_len` tokens, as in vLLM.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError

log = logging.getLogger(__name__)

_BY_LENGTH = {"longrope", "dynamic"}
_FIXED = "fixed"
"""A name for which transformers changes nothing."""


@torch.inference_mode()
def fix_ropes(model: nn.Module, max_model_len: int, device: torch.device) -> None:
    """Fix the frequencies of all rotary embeddings in one of transformers' models.

    ModelError for one that depends on the longest request even so.
    """
    for module in model.modules():
        for options in _by_length(module):
            kind = _fix(module, options, max_model_len, device)
            log.info("rotary embedding of type %s as for requests of %d tokens, for all requests", kind, max_model_len)


def _fix(module: Any, options: dict[str, str], max_model_len: int, device: torch.device) -> str:
    """Fix what a rotary embedding chooses if it is called with `options`; returns its type."""
    kinds, layer, last = module.rope_type, options.get("layer_type"), max_model_len - 1
    kind: str = kinds if layer is None else kinds[layer]
    _tables(module, [last], device, options)  # has it choose by this position
    module.rope_type = _FIXED if layer is None else {**kinds, layer: _FIXED}
    alone, beside_last = (_tables(module, positions, device, options) for positions in ([1], [1, last]))
    if not torch.equal(alone[:, 0], beside_last[:, 0]):
        raise ModelError(f"rotary embedding of type {kind} that depends on the longest request is not supported")
    return kind


def _by_length(module: nn.Module) -> Iterator[dict[str, str]]:
    """What a rotary embedding that chooses is called with beside positions, once for each choice."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        yield from ({"layer_type": layer} for layer, kind in kinds.items() if kind in _BY_LENGTH)
    elif kinds in _BY_LENGTH:
        yield {}


def _tables(module: nn.Module, positions: list[int], device: torch.device, options: dict[str, str]) -> Tensor:
    """Cosines and sines, (1, positions, ...)."""
    x = torch.zeros(1, device=device)  # says where, and of which dtype
    return torch.cat(module(x, torch.tensor([positions], device=device), **options), dim=-1)
