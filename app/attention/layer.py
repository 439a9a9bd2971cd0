"""The one seam between models and the KV cache (docs/architecture.md#the-attention-layer)."""

from torch import Tensor, nn

from .config import AttentionConfig, HeadNorms, LayerCache
from .context import ForwardContext, current_context


class Attention(nn.Module):
    """Causal attention over a request's whole past, with the K/V kept in blocks.

    The model knows nothing of requests: it hands in the step's tokens, in a row. Which request each belongs to and
    where its past lies is in the forward context; `app.worker.kv_storage` gives the layer its memory.
    """

    def __init__(self, config: AttentionConfig, bias: Tensor | None = None) -> None:
        """`bias`: see `LayerCache.bias`."""
        super().__init__()
        self.config = config
        self.cache = LayerCache(config, bias=bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None) -> Tensor:
        """Write `k` and `v` to the cache and attend.

        q: (tokens, num_heads, head_dim), k: (tokens, num_kv_heads, head_dim), v: (tokens, num_kv_heads, v_head_dim);
        returns (tokens, num_heads * v_head_dim).

        sinks (num_heads,): of each head, the score of something that every token sees and gets nothing of (Xiao et al.,
        2023, "Efficient Streaming Language Models with Attention Sinks"; learned, as in gpt-oss).
        """
        context = current_context()
        context.backend.store(self.cache, k, v, context.metadata)
        return context.backend.attend(self.cache, q, sinks, context.metadata)

    def forward_merged(
        self,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, for heads that have yet to be normed and rotated: a backend can do that as it writes them.

        qkv: (tokens, num_heads + 2 * num_kv_heads, head_dim); rope: cosine and sine, each (tokens, rotary_dim).
        """
        context = current_context()
        q = context.backend.rotate_and_store(self.cache, qkv, rope, norms, context.metadata)
        return context.backend.attend(self.cache, q, sinks, context.metadata)


class CrossAttention(nn.Module):
    """Attention of a decoder's tokens to all that its request's encoder has read, with K and V of that in blocks.

    K and V are written once, when the request begins; steps read them. Who reads what is in the forward context's
    `cross`.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.cache = LayerCache(config)

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write K and V, in the shapes of `Attention.forward`, of encoders' outputs: these are the step's tokens."""
        context = _cross_context()
        context.backend.store(self.cache, k, v, context.metadata)

    def forward(self, q: Tensor) -> Tensor:
        """Attend: (tokens, num_heads, head_dim) to (tokens, num_heads * v_head_dim)."""
        context = _cross_context()
        return context.backend.attend(self.cache, q, None, context.metadata)


def _cross_context() -> ForwardContext:
    context = current_context().cross
    assert context is not None
    return context
