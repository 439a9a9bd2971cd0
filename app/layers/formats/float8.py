"""FP8 weights (e4m3; Micikevicius et al., 2022) with a scale for each output, for blocks, or for all."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import Stored


class Float8:
    """`weight = scale * e4m3`. The scale is weight_scale (compressed-tensors) or weight_scale_inv (DeepSeek)."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        scheme, block = self._scheme, self._scheme.block
        shape: tuple[int, ...] = (1,) if scheme.is_whole else (out_features, 1)
        if block is not None:
            shape = -(-out_features // block[0]), -(-in_features // block[1])
        tensors = {
            "weight": Stored((out_features, in_features), torch.float8_e4m3fn),
            scheme.scale_name: Stored(shape),
        }
        return tensors | ({"input_scale": Stored((1,))} if scheme.has_input_scale else {})

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Format`."""
        weight, scale = tensors["weight"].float(), tensors[self._scheme.scale_name].float()
        if self._scheme.block is not None:
            rows, columns = self._scheme.block
            scale = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)
            scale = scale[:, : weight.shape[1]]
        return weight * scale
