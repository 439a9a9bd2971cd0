"""One layer's K and V in blocks, as the attention kernels of a device lay them out."""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDED_DTYPES = (torch.int8, torch.float8_e4m3fn)
"""The dtypes that keep K and V with a scale for each token and head, computed from its largest number."""
SCALE_DTYPE = torch.float32


class LayerKV(NamedTuple):
    """The memory of one layer. Scales say what the numbers of a token and head have to be multiplied by."""

    k: Tensor
    v: Tensor
    k_scales: Tensor
    """Of keys, laid out as `k` is, without its dimensions; empty if K and V are kept as they are."""
    v_scales: Tensor


def bytes_of_token(num_kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype) -> int:
    """What K and V of one token take in one layer. No values are kept if `v_head_dim` is 0."""
    scale = SCALE_DTYPE.itemsize if dtype in ROUNDED_DTYPES else 0
    return num_kv_heads * sum(size * dtype.itemsize + scale for size in (head_dim, v_head_dim) if size)
