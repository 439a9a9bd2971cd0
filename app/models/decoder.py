"""One decoder for the families that carry most traffic; `DecoderConfig` says how they differ.

Tokens of all requests of a step stand in one row: hidden states are (tokens, hidden_size), there is no batch
dimension and no padding. Parameters have the names they have in checkpoints, but for the merged projections.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.attention.layer import Attention, AttentionConfig
from app.kernels.ops import rotate, silu_mul
from app.layers.linear import Head, Linear, MergedLinear
from app.layers.norm import OffsetRMSNorm, RMSNorm
from app.layers.rotary import RotaryEmbedding
from app.models.config import DecoderConfig, NotCarriedError

RopeTables = tuple[Tensor, Tensor] | None


def _gelu_mul(gate_up: Tensor, approximate: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_mul,
    "gelu": partial(_gelu_mul, approximate="none"),
    "gelu_pytorch_tanh": partial(_gelu_mul, approximate="tanh"),
}
"""Of what gate_up_proj gives: the activated gate times the rest."""


def _norm(config: DecoderConfig, size: int) -> RMSNorm:
    return (OffsetRMSNorm if config.offset_norm else RMSNorm)(size, config.norm_eps)


class DecoderAttention(nn.Module):
    """Projections, norms of queries and keys, rotation, attention."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = MergedLinear(config.hidden_size, (q_size, kv_size, kv_size), config.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, config.o_bias)
        self.norm_per_head = config.qk_norm == "head"
        self.norm_whole = config.qk_norm == "full"
        if config.qk_norm != "none":
            self.q_norm = _norm(config, config.head_dim if self.norm_per_head else q_size)
            self.k_norm = _norm(config, config.head_dim if self.norm_per_head else kv_size)
        self.attn = Attention(
            AttentionConfig(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                v_head_dim=config.head_dim,
                scale=config.attention_scale,
                window=config.windows[layer],
                softcap=config.attention_softcap,
            )
        )

    def forward(self, x: Tensor, rope: RopeTables) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))  # (tokens, heads, head_dim)
        qk, v = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.norm_per_head or self.norm_whole:
            qk = self._norm(*qk.split((self.num_heads, self.num_kv_heads), dim=1))
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.split((self.num_heads, self.num_kv_heads), dim=1)
        out: Tensor = self.o_proj(self.attn(q, k, v))
        return out

    def _norm(self, q: Tensor, k: Tensor) -> Tensor:
        if self.norm_whole:
            q, k = (norm(t.flatten(1)).view(t.shape) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        return torch.cat((q, k), dim=1)


class DecoderMLP(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = MergedLinear(config.hidden_size, (size, size), config.mlp_bias)
        self.down_proj = Linear(size, config.hidden_size, config.mlp_bias)
        if config.activation not in _ACTIVATIONS:
            raise NotCarriedError(f"activation {config.activation}")
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.activation(self.gate_up_proj(x)))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before, after, or around them."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = DecoderMLP(config)
        self.placement = config.norm_placement
        # Checkpoints give "post_attention_layernorm" two meanings: Llama's stands before the MLP, the others'
        # behind the attention.
        names = {
            "pre": ("input_layernorm", "post_attention_layernorm"),
            "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
            "sandwich": (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ),
        }[config.norm_placement]
        for name in names:
            self.add_module(name, _norm(config, config.hidden_size))

    def forward(self, x: Tensor, rope: RopeTables) -> Tensor:
        if self.placement == "pre":
            x = x + self.self_attn(self.input_layernorm(x), rope)
            return x + self.mlp(self.post_attention_layernorm(x))
        if self.placement == "post":
            x = x + self.post_attention_layernorm(self.self_attn(x, rope))
            return x + self.post_feedforward_layernorm(self.mlp(x))
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nn.Module):
    """Token ids and positions in, logits of the tokens that need them out."""

    def __init__(self, config: DecoderConfig, max_model_len: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size)
        )
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(len(config.windows)))
        self.norm = _norm(config, config.hidden_size)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = nn.Parameter(self.embed_tokens.weight.data)  # the same memory
        kinds = list(dict.fromkeys(rope for rope in config.ropes if rope is not None))
        self.rotaries = nn.ModuleList(RotaryEmbedding(rope, max_model_len) for rope in kinds)
        self.rotary_of_layer = [None if rope is None else kinds.index(rope) for rope in config.ropes]

    def forward(self, input_ids: Tensor, positions: Tensor, logits_at: Tensor) -> Tensor:
        """input_ids and positions (tokens,) int64, logits_at (n,) token indices; float32 (n, vocab_size)."""
        x = self.embed_tokens(input_ids)
        if self.config.embedding_scale != 1.0:
            # Rounded to the model's dtype first, as in training.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        tables = [rotary.tables(positions, x.dtype) for rotary in self.rotaries]
        for layer, rotary in zip(self.layers, self.rotary_of_layer, strict=True):
            x = layer(x, None if rotary is None else tables[rotary])
        logits: Tensor = self.lm_head(self.norm(x[logits_at]))
        if self.config.logit_softcap is not None:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return logits
