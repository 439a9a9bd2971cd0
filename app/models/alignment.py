"""Where in a sound the words of a text are, by what some heads of Whisper's cross-attention look at.

As openai/whisper has it (whisper/timing.py), and transformers' `return_token_timestamps`: these heads were found to
follow what is spoken. The text is known by now, so the decoder reads it in one pass, without KV blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.layer import CrossAttention


class Looks:
    """What stands in for attention in such a pass, and what the heads have looked at."""

    def __init__(self, layers: Sequence[CrossAttention], heads: Sequence[tuple[int, int]]) -> None:
        """heads: (index into the decoder's cross-attention `layers`, head)."""
        self._heads: dict[int, list[int]] = {}
        for layer, head in heads:
            self._heads.setdefault(id(layers[layer]), []).append(head)
        self._seen: list[Tensor] = []

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (1, heads, tokens, head_dim), k and v (1, heads, seen, head_dim) to (1, tokens, heads, head_dim)."""
        heads = self._heads.get(id(layer), [])
        if heads:
            self._seen.append((q[0, heads] @ k[0, heads].transpose(1, 2) * scale).float().softmax(-1))
        is_causal = not isinstance(layer, CrossAttention)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale).transpose(1, 2)

    def smoothed(self, first: int, num_places: int, width: int) -> Tensor:
        """(tokens from `first` on, places of the sound): how much a token has to do with a place, over all heads.

        width: of the median filter along the places; odd.
        """
        weights = torch.cat(self._seen)[:, first:, :num_places]
        deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, unbiased=False)
        weights = (weights - mean) / deviation.clamp(min=torch.finfo(torch.float32).tiny)
        if num_places > width // 2:
            padded = F.pad(weights, (width // 2, width // 2), mode="reflect")
            weights = padded.unfold(-1, width, 1).median(dim=-1).values
        return weights.mean(0)


_looks: ContextVar[Looks | None] = ContextVar("looks", default=None)


@contextmanager
def looking(looks: Looks) -> Iterator[None]:
    """Have the decoder's layers attend through `looks` in this block, in this thread."""
    token = _looks.set(looks)
    try:
        yield
    finally:
        _looks.reset(token)


def current_looks() -> Looks | None:
    """See `looking`."""
    return _looks.get()
