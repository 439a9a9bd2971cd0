"""One decoder for the families that carry most traffic; `DecoderConfig` says how they differ.

The tokens of all requests in a step form one row: hidden states are (tokens, hidden_size), without a batch dimension
and without padding. Parameters have their names in checkpoints, except for those of merged projections.
"""

import torch
from torch import Tensor, nn

from ..attention.config import AttentionConfig, HeadNorms
from ..attention.layer import Attention
from ..checkpoint.families import DecoderConfig, ExpertsConfig, NotCarriedError
from ..kernels.ops import ACTIVATIONS, Clamped, gated, rounded_gated, take_rows
from ..kernels.rows import Rows
from ..layers.linear import Head, Linear, MergedLinear
from ..layers.moe import Experts, MixtureOfExperts, Router
from ..layers.norm import OffsetRMSNorm, RMSNorm
from ..layers.rotary import RotaryEmbedding

RopeTables = tuple[Tensor, Tensor] | None


def _activation(config: DecoderConfig) -> str:
    if config.activation not in ACTIVATIONS:
        raise NotCarriedError(f"activation {config.activation}")
    return config.activation


def _norm(config: DecoderConfig, size: int) -> RMSNorm:
    return (OffsetRMSNorm if config.offset_norm else RMSNorm)(size, config.norm_eps)


class DecoderAttention(nn.Module):
    """Projections, norms of queries and keys, rotation, attention."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        names = () if config.merged_in_checkpoint else ("q_proj", "k_proj", "v_proj")
        self.qkv_proj = MergedLinear(config.hidden_size, (q_size, kv_size, kv_size), config.qkv_bias, names)
        self.o_proj = Linear(q_size, config.hidden_size, config.o_bias)
        self.norm_per_head = config.qk_norm == "head"
        self.norm_whole = config.qk_norm == "full"
        if config.qk_norm != "none":
            self.q_norm = _norm(config, config.head_dim if self.norm_per_head else q_size)
            self.k_norm = _norm(config, config.head_dim if self.norm_per_head else kv_size)
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.has_sinks else None
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

    def forward(self, x: Tensor | Rows, rope: RopeTables) -> Tensor:
        qkv = self.qkv_proj(x)
        if self.norm_whole:
            sizes = self.qkv_proj.sizes
            q, k, v = qkv.split(sizes, dim=-1)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=-1)
        heads = qkv.unflatten(-1, (-1, self.head_dim))  # (tokens, heads, head_dim)
        out: Tensor = self.o_proj(self.attn.forward_merged(heads, rope, self._head_norms(), self.sinks))
        return out

    def _head_norms(self) -> HeadNorms | None:
        if not self.norm_per_head:
            return None
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.offset, self.q_norm.eps)


class DecoderMLP(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = config.intermediate_size
        names = () if config.merged_in_checkpoint else ("gate_proj", "up_proj")
        self.gate_up_proj = MergedLinear(config.hidden_size, (size, size), config.mlp_bias, names)
        self.down_proj = Linear(size, config.hidden_size, config.mlp_bias)
        self.activation = _activation(config)

    def forward(self, x: Tensor | Rows) -> Tensor:
        gate_up = self.gate_up_proj(x)
        if group := self.down_proj.group_for(gate_up):
            out: Tensor = self.down_proj(rounded_gated(gate_up, self.activation, group))
        else:
            out = self.down_proj(gated(gate_up, self.activation))
        return out


def _experts(config: DecoderConfig, experts: ExpertsConfig) -> MixtureOfExperts:
    count, size = experts.num_experts, config.hidden_size
    activation = Clamped(*experts.clamp) if experts.clamp else _activation(config)
    layout = experts.names, experts.has_bias, experts.inputs_first
    return MixtureOfExperts(
        Router(count, size, experts.top_k, experts.normalizes, experts.has_bias),
        Experts(count, size, experts.intermediate_size, activation, *layout),
        experts.router,
    )


class DecoderLayer(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before, after, or around them."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        experts = config.experts if config.experts and config.experts.in_layers[layer] else None
        self._mlp = experts.block if experts else "mlp"  # its name in checkpoints
        self.add_module(self._mlp, _experts(config, experts) if experts else DecoderMLP(config))
        self.placement = config.norm_placement
        # "post_attention_layernorm" has two meanings: in Llama it stands before the MLP, in other families right behind
        # the attention.
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

    @property
    def feed_forward(self) -> nn.Module:
        """What follows the attention: a DecoderMLP, or a MixtureOfExperts."""
        module: nn.Module = getattr(self, self._mlp)
        return module

    def forward(self, x: Tensor, rope: RopeTables, stream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Takes and returns the residual stream as two parts, x and `stream`, whose sum it is; `stream` may be None.

        The sum is left to the next norm, which has to read both parts anyway.
        """
        mlp = self.feed_forward
        into_mlp = mlp.gate_up_proj if isinstance(mlp, DecoderMLP) else None  # routers read it, too
        if self.placement == "pre":
            normed = self.input_layernorm(x, stream, self.self_attn.qkv_proj)
            stream = x if stream is None else stream
            normed = self.post_attention_layernorm(self.self_attn(normed, rope), stream, into_mlp)
            return mlp(normed), stream
        if self.placement == "post":
            x = x + self.post_attention_layernorm(self.self_attn(x, rope))
            return x + self.post_feedforward_layernorm(mlp(x)), None
        normed = self.input_layernorm(x, into=self.self_attn.qkv_proj)
        x = x + self.post_attention_layernorm(self.self_attn(normed, rope))
        normed = self.pre_feedforward_layernorm(x, into=into_mlp)
        return x + self.post_feedforward_layernorm(mlp(normed)), None


class Decoder(nn.Module):
    """Computes hidden states from token ids and positions, and logits from the hidden states that need them."""

    embed_tokens: nn.Embedding | None
    embedding_scale: Tensor

    def __init__(self, config: DecoderConfig, max_model_len: int, embeds_by_head: bool = False) -> None:
        """`embeds_by_head`: embeddings are rows of the last layer's weight, whatever form it has."""
        super().__init__()
        self.config = config
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        size = config.vocab_size, config.hidden_size
        self.embed_tokens = None if embeds_by_head else nn.Embedding(*size, _weight=torch.empty(size))
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(len(config.windows)))
        self.norm = _norm(config, config.hidden_size)
        tied = self.embed_tokens.weight.data if self.embed_tokens and config.tie_word_embeddings else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, tied)
        scale = torch.tensor(config.embedding_scale, dtype=torch.get_default_dtype())
        self.register_buffer("embedding_scale", scale, persistent=False)
        kinds = list(dict.fromkeys(rope for rope in config.ropes if rope is not None))
        self.rotaries = nn.ModuleList(RotaryEmbedding(rope, max_model_len) for rope in kinds)
        self.rotary_of_layer = [None if rope is None else kinds.index(rope) for rope in config.ropes]

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states after the last norm (tokens, hidden_size), for input_ids and positions (tokens,)."""
        dtype = self.embedding_scale.dtype
        if self.embed_tokens is None:
            x = self.lm_head.embeddings(input_ids, dtype)
        else:
            x = take_rows(self.embed_tokens.weight, input_ids, dtype)
        if self.config.embedding_scale != 1.0:
            # The factor is rounded to the model's dtype, as it was in training.
            x = x * self.embedding_scale
        tables = [rotary.tables(positions, x.dtype) for rotary in self.rotaries]
        stream: Tensor | None = None
        for layer, rotary in zip(self.layers, self.rotary_of_layer, strict=True):
            x, stream = layer(x, None if rotary is None else tables[rotary], stream)
        return self.norm(x, stream)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab_size) in float32 for hidden states (n, hidden_size)."""
        logits: Tensor = self.lm_head(hidden)
        if self.config.logit_softcap is not None:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return logits
