"""The one seam between models and the KV cache."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from app.attention.context import current_context


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
    softcap: float | None = None
    """Scores are squashed to `softcap * tanh(score / softcap)` (Gemma 2)."""


class HeadNorms(NamedTuple):
    """Root-mean-square norms of each head of queries and of keys, before they are rotated."""

    q_weight: Tensor
    """(head_dim,)"""
    k_weight: Tensor
    offset: float
    """Added to the weights."""
    eps: float


class Attention(nn.Module):
    """Causal attention over a request's whole past, with the K/V kept in blocks.

    The model knows nothing of requests: it hands in the step's tokens, in a row. Which request each belongs to and
    where its past lies is in the forward context; the cache is bound to the layer by `app.worker.kv_storage`.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.k_cache: Tensor
        self.v_cache: Tensor

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write `k` and `v` to the cache and attend.

        q: (tokens, num_heads, head_dim), k: (tokens, num_kv_heads, head_dim), v: (tokens, num_kv_heads, v_head_dim);
        returns (tokens, num_heads * v_head_dim).
        """
        context = current_context()
        context.backend.store(self, k, v, context.metadata)
        return context.backend.attend(self, q, context.metadata)

    def forward_merged(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None, norms: HeadNorms | None) -> Tensor:
        """As `forward`, for heads that have yet to be normed and rotated: a backend can do that as it writes them.

        qkv: (tokens, num_heads + 2 * num_kv_heads, head_dim); rope: cosine and sine, each (tokens, rotary_dim).
        """
        context = current_context()
        q = context.backend.rotate_and_store(self, qkv, rope, norms, context.metadata)
        return context.backend.attend(self, q, context.metadata)
