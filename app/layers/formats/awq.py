"""AWQ (Lin et al., 2023), as AutoAWQ's "gemm" version writes it: codes of 4 bits with zero points."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import Stored, unpack, whole_parts, words
from .codes import Codes, around

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word the code of each of eight neighbours is. The order suits AWQ's own kernels."""


class Awq:
    """`weight = scales * (code - zero)`. All tensors are packed along the outputs."""

    def __init__(self, scheme: Scheme) -> None:
        self._group = scheme.group

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        num_words = words(out_features, 4, "outputs")
        num_groups = whole_parts(in_features, self._group or in_features, "inputs")
        return {
            "qweight": Stored((in_features, num_words), torch.int32),
            "qzeros": Stored((num_groups, num_words), torch.int32),
            "scales": Stored((num_groups, out_features)),
        }

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        scales = tensors["scales"].T.float()
        zero_points = _in_order(tensors["qzeros"]).float()
        return around(_in_order(tensors["qweight"]), scales.contiguous(), zero_points, 4)


def _in_order(packed: Tensor) -> Tensor:
    """From (n, words) int32 to (outputs, n) uint8."""
    codes = unpack(packed, 4).unflatten(1, (-1, 8))[..., _PLACES]
    return codes.flatten(1).T.contiguous()
