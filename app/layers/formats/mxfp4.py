"""MXFP4 as gpt-oss stores it: codes of 4 bits, two in a byte, and a power of two for each group of 32 inputs.

Open Compute Project, "Microscaling Formats (MX) Specification", 2023.
"""

import torch
from torch import Tensor

from .base import some_rows

GROUP = 32
"""Inputs that share a scale."""
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What codes stand for: e2m1."""
BIAS = 127
"""Of the exponents that are scales: e8m0. 255 stands for no number."""


def dense(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (outputs, inputs) of blocks (outputs, inputs / 2) and scales (outputs, inputs / 32), both uint8.

    The lower half of a byte comes first.
    """
    table = torch.tensor(NUMBERS, device=blocks.device)
    weight = torch.empty(len(blocks), 2 * blocks.shape[1], dtype=dtype, device=blocks.device)
    for rows in some_rows(weight):
        codes = torch.stack((blocks[rows] & 15, blocks[rows] >> 4), -1).flatten(1)
        numbers = table[codes.int()].unflatten(1, (-1, GROUP))
        weight[rows] = torch.ldexp(numbers, scales[rows].int()[..., None] - BIAS).flatten(1)
    return weight
