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
    if config.yarn is not None:
        return _between(frequencies, config, *config.yarn)
    if config.llama3 is None:
        return frequencies
    factor, low, high, context = config.llama3
    # How often each pair of dimensions turns within the original context. Fast pairs keep their frequency, slow ones
    # are scaled, and between the two limits there is a smooth transition.
    turns = context * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (smooth + (1.0 - smooth) / factor)


def _between(
    frequencies: Tensor, config: RopeConfig, factor: float, fast: float, slow: float, context: int, truncates: bool
) -> Tensor:
    """YaRN: pairs of dimensions that turn more than `fast` times within the context keep their frequency, those that
    turn less than `slow` times are scaled, and between the two there is a ramp.
    """
    dim = config.rotary_dim
    first, last = (
        dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.theta)) for turns in (fast, slow)
    )
    if truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    return frequencies / factor * ramp + frequencies * (1.0 - ramp)


class RotaryEmbedding(nn.Module):
    """Tables of the cosines and sines of every position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: RopeConfig, max_positions: int) -> None:
        super().__init__()
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * inverse_frequencies(config)
        # (max_positions, rotary_dim): each angle twice, for the two halves of a head.
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos() * config.scale, persistent=False)
        self.register_buffer("sin", angles.sin() * config.scale, persistent=False)

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (tokens, rotary_dim), for positions (tokens,)."""
        return take_rows(self.cos, positions, dtype), take_rows(self.sin, positions, dtype)
