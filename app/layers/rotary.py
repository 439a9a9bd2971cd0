"""Rotary position embedding (Su et al., 2021), with the kinds of scaling that do not depend on a request's length."""

import math

import torch
from torch import Tensor, nn

from ..checkpoint.families import RopeConfig
from ..kernels.ops import take_rows


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """(rotary_dim / 2,) float32: radians per position of each pair of dimensions."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    frequencies = 1.0 / (config.theta**exponents) / config.linear_factor
    if config.factors is not None:
        return frequencies / torch.tensor(config.factors)
    if config.llama3 is None:
        return frequencies
    factor, low, high, context = config.llama3
    # How often each pair of dimensions turns within the original context. Fast pairs keep their frequency, slow ones
    # are scaled, and between the two limits there is a smooth transition.
    turns = context * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (smooth + (1.0 - smooth) / factor)


class RotaryEmbedding(nn.Module):
    """Tables of the cosines and sines of every position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: RopeConfig, max_positions: int) -> None:
        super().__init__()
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * inverse_frequencies(config)
        # (max_positions, rotary_dim): each angle twice, for the two halves of a head.
        self.register_buffer("cos", torch.cat((angles, angles), dim=-1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), dim=-1).sin(), persistent=False)

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (tokens, rotary_dim), for positions (tokens,)."""
        return take_rows(self.cos, positions, dtype), take_rows(self.sin, positions, dtype)
