"""Layers of transformers' models that take the positions of their tokens from the number of tokens in a cache.

Llama 4 scales queries by their positions, and counts these from the tokens that are in transformers' cache (Nakanishi,
2025, "Scalable-Softmax"). Paceline's row has tokens of many requests, and no such cache.
"""

from typing import Any

import torch
from torch import Tensor, nn

_COUNTS = "attn_temperature_tuning"
"""What such layers have."""


class Places:
    """Stands in the place of the cache for these layers, whose tokens then have the positions of the step."""

    def __init__(self) -> None:
        self._positions = torch.empty(0)

    @classmethod
    def of(cls, body: nn.Module) -> "Places":
        """Of the layers in the body of a model."""
        places = cls()

        def give(_module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return arguments, options | {"past_key_values": places}

        for module in body.modules():
            if getattr(module, _COUNTS, False):
                module.register_forward_pre_hook(give, with_kwargs=True)
        return places

    def set(self, positions: Tensor) -> None:
        """The positions (tokens,) of the step that is run next."""
        self._positions = positions

    def get_seq_length(self, _layer: int) -> Tensor:
        """What a layer adds to 0, 1, 2 and so on to have its tokens' positions."""
        return self._positions - torch.arange(len(self._positions), device=self._positions.device)

    def update(self, keys: Tensor, values: Tensor, _layer: int) -> tuple[Tensor, Tensor]:
        """Keeps nothing."""
        return keys, values
