"""Whether two modules compute the same numbers, which is tried on random ones."""

import torch
from torch import Tensor, nn

SCALES = 1, 100
"""Of random numbers: some models bound what goes through an activation, which only large ones show."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""The difference that another order of additions makes, relative to the largest number."""


def are_same(old: nn.Module, new: nn.Module, *arguments: Tensor) -> bool:
    """Whether two modules compute the same numbers, but for rounding."""
    return is_close(*(module(*arguments) for module in (old, new)))


def is_close(expected: Tensor, found: Tensor) -> bool:
    """Whether two results of one dtype are the same, but for rounding."""
    if expected.shape != found.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, 0.0)
    expected, found = expected.float(), found.float()
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
