"""FP8 weights (e4m3; Micikevicius et al., 2022) with a scale for each output, for blocks, or for all."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import Stored, some_rows

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""The largest number of e4m3: 448."""


@dataclass(frozen=True)
class Float8Weight:
    """A weight in FP8: `weight[o, i] = scales[o, i // group] * values[o, i]`."""

    values: Tensor
    """(out_features, in_features) float8_e4m3fn"""
    scales: Tensor
    """(out_features, groups) float32"""
    group: int
    """Inputs that share a scale; the last group may have fewer."""

    def dense(self) -> Tensor:
        """The weight that this stands for, (out_features, in_features) float32, rounded once."""
        return self.values.float() * self.scales.repeat_interleave(self.group, 1)[:, : self.values.shape[1]]

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(self.scales.isfinite().all()) and not bool((self.values.view(torch.uint8) & 0x7F == 0x7F).any())


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

    def decode(self, tensors: Mapping[str, Tensor]) -> Float8Weight:
        """See `Format`. Scales are spread over the outputs that share them."""
        values, scales = tensors["weight"], tensors[self._scheme.scale_name].float()
        rows, group = self._scheme.block or (1, values.shape[1])
        if self._scheme.is_whole:
            scales = scales.expand(len(values), 1)
        return Float8Weight(values, scales.repeat_interleave(rows, 0)[: len(values)].contiguous(), group)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        rounded = quantize(weight, weight.dtype)
        return {"weight": rounded.values, self._scheme.scale_name: rounded.scales.to(weight.dtype)}


def quantize(weight: Tensor, stored: torch.dtype = torch.float32) -> Float8Weight:
    """Round a weight (out_features, in_features): an output's largest number becomes the largest of e4m3.

    Scales are numbers of the dtype `stored`, as a file has them.
    """
    scales = weight.abs().amax(1, keepdim=True).float() / _LARGEST
    scales = scales.clamp(min=torch.finfo(stored).tiny).to(stored).float()
    values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for rows in some_rows(weight):
        values[rows] = (weight[rows].float() / scales[rows]).to(torch.float8_e4m3fn)
    return Float8Weight(values, scales, weight.shape[1])
