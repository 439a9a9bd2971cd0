"""GPTQ (Frantar et al., 2022), as AutoGPTQ and GPTQModel write it: codes of 2, 4 or 8 bits with zero points."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import Stored, code_bits, sorted_by_group, unpack, whole_parts, words
from .codes import Codes, around


class Gptq:
    """`weight = scales * (code - zero)`; with act-order, `g_idx` says which group each input is in."""

    def __init__(self, scheme: Scheme) -> None:
        self._bits = scheme.bits
        self._group = scheme.group
        self._zero_offset = scheme.zero_offset

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`. Codes are packed along the inputs, zero points along the outputs."""
        num_groups = whole_parts(in_features, self._group or in_features, "inputs")
        return {
            "qweight": Stored((words(in_features, self._bits, "inputs"), out_features), torch.int32),
            "qzeros": Stored((num_groups, words(out_features, self._bits, "outputs")), torch.int32),
            "scales": Stored((num_groups, out_features)),
            "g_idx": Stored((in_features,), torch.int32),
        }

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        codes = unpack(tensors["qweight"].T, self._bits)
        zero_points = unpack(tensors["qzeros"], self._bits).T.float() + self._zero_offset
        scales = tensors["scales"].T.float()
        codes, order = sorted_by_group(codes, tensors["g_idx"], scales.shape[1])
        return around(codes, scales.contiguous(), zero_points, code_bits(self._bits), order)
