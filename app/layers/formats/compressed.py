"""Whole numbers as compressed-tensors stores them: packed codes (W4A16, W8A16), or int8 (W8A8)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import WORD, Stored, code_bits, pack, sorted_by_group, unpack, whole_parts, words
from .codes import Codes, around, quantize, signed


class Packed:
    """The format "pack-quantized": signed numbers, stored as codes from 0 on, packed along the inputs."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._bits = scheme.bits

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        num_groups = whole_parts(in_features, self._scheme.group or in_features, "inputs")
        tensors = {
            "weight_packed": Stored((out_features, words(in_features, self._bits, "inputs")), torch.int32),
            "weight_scale": Stored((out_features, num_groups)),
            "weight_shape": Stored((2,), torch.int64),
        }
        if self._scheme.has_zeros:
            num_words = -(-out_features // (WORD // self._bits))
            tensors["weight_zero_point"] = Stored((num_words, num_groups), torch.int32)
        if self._scheme.is_sorted:
            tensors["weight_g_idx"] = Stored((in_features,), torch.int32)
        return tensors

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        codes, scales = unpack(tensors["weight_packed"], self._bits), tensors["weight_scale"].float()
        if tuple(tensors["weight_shape"].tolist()) != tuple(codes.shape):
            raise ValueError(f"weight_shape is {tensors['weight_shape'].tolist()}, not {list(codes.shape)}")
        if self._scheme.has_zeros:
            zero_points = unpack(tensors["weight_zero_point"].T, self._bits).T[: len(codes)].float()
        else:
            zero_points = torch.full_like(scales, 2 ** (self._bits - 1))
        order = None
        if self._scheme.is_sorted:
            codes, order = sorted_by_group(codes, tensors["weight_g_idx"], scales.shape[1])
        return around(codes, scales, zero_points, code_bits(self._bits), order)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        codes = quantize(weight, self._bits, self._scheme.group or weight.shape[1], weight.dtype)
        tensors = {
            "weight_packed": pack(codes.codes, self._bits),
            "weight_scale": codes.scales.to(weight.dtype),
            "weight_shape": torch.tensor(weight.shape),
        }
        if self._scheme.has_zeros:
            zero_points = (-codes.zeros / codes.scales).round().to(torch.uint8)
            tensors["weight_zero_point"] = pack(zero_points.T, self._bits).T.contiguous()
        return tensors


class Int8:
    """The format "int-quantized": int8 numbers, one scale for each output or group, or for all."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        scheme = self._scheme
        num_groups = whole_parts(in_features, scheme.group or in_features, "inputs")
        shape = (1,) if scheme.is_whole else (out_features, num_groups)
        tensors = {"weight": Stored((out_features, in_features), torch.int8), "weight_scale": Stored(shape)}
        return tensors | ({"input_scale": Stored((1,))} if scheme.has_input_scale else {})

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        weight, scales = tensors["weight"], tensors["weight_scale"].float()
        if self._scheme.is_whole:
            scales = scales.expand(len(weight), 1)
        return signed(weight, scales.contiguous())
