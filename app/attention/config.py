"""What one layer's attention looks like, and the memory that it keeps."""

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..kernels.kv import LayerKV

Position = TypeVar("Position", int, Tensor)


@dataclass(frozen=True)
class AttentionConfig:
    """What one layer's attention looks like."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    """Factor of the scores."""
    window: int | None = None
    """Each token sees itself and the `window - 1` tokens before it; None sees all."""
    chunked: bool = False
    """Windows do not move along: they begin at whole multiples of their size, and each token sees what lies in its own,
    up to itself (Llama 4)."""
    softcap: float | None = None
    """Scores are squashed to `softcap * tanh(score / softcap)` (Gemma 2)."""
    sees_ahead: bool = False
    """The tokens of an image see all of each other (Gemma 3); see `StepInput.ends`."""
    values_in_keys: bool = False
    """A token's value is the beginning of its key (DeepSeek-V2: multi-head latent attention over the latents). A
    backend may then keep the key alone; see `app.attention.registry.Capabilities`."""

    def first_seen(self, position: Position) -> Position:
        """From where on a token at a position sees others; it may be below 0."""
        if self.window is None:
            return position * 0
        return position // self.window * self.window if self.chunked else position - self.window + 1


class HeadNorms(NamedTuple):
    """Root-mean-square norms of each head of queries and of keys, before they are rotated."""

    q_weight: Tensor
    """(head_dim,)"""
    k_weight: Tensor
    offset: float
    """Added to the weights."""
    eps: float


@dataclass
class LayerCache:
    """One layer's K and V, in the layout of the backend that allocated them."""

    config: AttentionConfig
    kv: LayerKV = field(default_factory=lambda: LayerKV(*torch.empty(4, 0)))
    group: int = 0
    """The KV group whose block tables say where a request's tokens lie in it."""
    bias: Tensor | None = None
    """(num_heads, distances) float32: what is added to the score of a token so far before the one that sees it; beyond
    the last distance, what is there (Raffel et al., 2020: T5). None if nothing is."""

    def bias_at(self, distances: Tensor) -> Tensor | None:
        """(num_heads, ...) for distances of any shape; those below 0 are not seen, and get anything."""
        return None if self.bias is None else self.bias[:, distances.clamp(0, self.bias.shape[1] - 1)]
