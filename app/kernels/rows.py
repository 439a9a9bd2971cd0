"""Activations in FP8, as what comes before a product can hand them to it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Activations in e4m3: `scales[i // group, r] * values[r, i]`."""

    values: Tensor
    """(rows, inputs) float8_e4m3fn"""
    scales: Tensor
    """(groups, rows) float32"""
    dtype: torch.dtype
    """Of what they were before."""
