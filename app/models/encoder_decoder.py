"""Runs encoder-decoders of transformers, with Paceline's attention in their decoders.

The encoder is transformers' own, and reads padded batches. Each decoder layer attends to the text so far through an
`Attention`, and to what the encoder has read through a `CrossAttention`, whose K and V are computed once for each
input: transformers' layers take them from a cache if that says that it has them, and `_StepCache` says so.
"""

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention.config import AttentionConfig
from ..attention.context import ForwardContext, current_context, forward_context
from ..attention.layer import Attention, CrossAttention
from ..checkpoint.encoder_decoders import EncoderDecoderConfig
from ..checkpoint.folder import ModelFolder
from ..errors import ModelError, quoted
from ..layers.methods import Methods
from ..layers.methods.plain import adopt_all
from .alignment import Looks, current_looks, looking
from .classes import config_of, encoder_decoder_class
from .generic import FixedHidden
from .noise import fill_with_noise
from .stored import finish_stored, load_pretrained
from .weights import refuse_unmatched

_NAME = "paceline_decoder"
_PROBE = 2, 3
"""Tokens of the decoder, and of the encoder, in the pass that describes the layers: by these numbers it tells them."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that a decoder's layers call: query (1, heads, tokens, head_dim) to (1, tokens, heads, v_head_dim).

    A cross-attention with keys is to keep these; without, it attends to those that it has.
    """
    layer = getattr(module, "paceline", None)
    if layer is not None and (looks := current_looks()) is not None:
        return looks.attend(layer, query, key, value, layer.config.scale), None
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if layer is None:
        module.paceline = _describe(q, k, v, options)
        return q.new_zeros(1, *q.shape[:2], v.shape[2]), None
    if isinstance(layer, CrossAttention):
        if len(k):
            layer.store(k, v)
            return q.new_zeros(1, *q.shape[:2], v.shape[2]), None
        return layer(q).view(1, *q.shape[:2], -1), None
    return layer(q, k, v).view(1, *q.shape[:2], -1), None


def _describe(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Attention | CrossAttention:
    """The layer that an attention asks for in its first call, which is made when the model is loaded."""
    scale, bias = options.get("scaling"), options.get("position_bias")
    config = AttentionConfig(
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        v_head_dim=v.shape[2],
        scale=q.shape[2] ** -0.5 if scale is None else float(scale),
        softcap=options.get("softcap"),
    )
    if len(k) == _PROBE[1]:
        return CrossAttention(config)
    return Attention(config, None if bias is None else bias.float().contiguous())


class _NoKeys:
    """What the cache has of a cross-attention: K and V of no token, so that the layer does not compute them again."""

    def __init__(self, layer: CrossAttention, like: Tensor) -> None:
        heads = layer.config.num_kv_heads
        self.keys = like.new_empty(1, heads, 0, layer.config.head_dim)
        self.values = like.new_empty(1, heads, 0, layer.config.v_head_dim)


class _NoCache(Cache):
    """Stands in the place of transformers' caches: keeps nothing, and tells the tokens' positions."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.offsets = torch.zeros(1, dtype=torch.int64)
        """(tokens,): what a decoder adds to 0, 1, 2 and so on to have its tokens' positions."""

    def update(self, key_states: Tensor, value_states: Tensor, *_where: Any, **_how: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> Any:  # noqa: ARG002
        return self.offsets


class _StepCache(EncoderDecoderCache):
    """The cache that a decoder gets in a step; K and V are in blocks."""

    def __init__(self, cross_layers: Sequence[CrossAttention], like: Tensor) -> None:
        self.self_attention_cache: Any = _NoCache([None] * len(cross_layers))
        self.cross_attention_cache: Any = _NoCache([_NoKeys(layer, like) for layer in cross_layers])
        self.is_updated = dict.fromkeys(range(len(cross_layers)), True)

    def set(self, positions: Tensor) -> None:
        """The positions (tokens,) of the step that is run next."""
        self.self_attention_cache.offsets = positions - torch.arange(len(positions), device=positions.device)


class _TablePositions(nn.Module):
    """M2M100's positions, read from its table: its own code wants the number of tokens that were before as a number."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.table = of.weights
        self._first = of.padding_idx + 1

    def forward(self, _input_ids: Tensor, _embeds: Tensor | None, past_key_values_length: Tensor) -> Tensor:
        places = torch.arange(len(past_key_values_length), device=self.table.device) + past_key_values_length
        rows: Tensor = self.table[places + self._first]
        return rows[None]


class EncoderDecoder(nn.Module):
    """An encoder-decoder of transformers, whose decoder has the interface of `app.models.decoder.Decoder`."""

    continues_prompts = True

    def __init__(self, model: Any, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.hidden_size = map(int, model.get_output_embeddings().weight.shape)
        holder = model if hasattr(model, "decoder") else model.model
        self.encoder, self.decoder = holder.encoder, holder.decoder
        self.head = model
        self.pad_id = model.config.pad_token_id or 0
        _give_own_attention(self.encoder)
        for module in self.decoder.modules():
            if getattr(module, "has_relative_attention_bias", False):
                _give_table(module)
        if config.model_type == "m2m_100":
            self.decoder.embed_positions = _TablePositions(self.decoder.embed_positions)
        self.cross_modules = self._described()
        """The modules of the decoder's cross-attention, in order."""
        self._hidden_name = next(
            name for name in ("key_value_states", "encoder_hidden_states")
            if name in signature(self.cross_modules[0].forward).parameters
        )  # fmt: skip
        self._like = next(self.decoder.parameters())
        self._cache = _StepCache(self.cross_layers, self._like)
        self.fixed = FixedHidden(self.decoder)
        holder.decoder = self.fixed

    @torch.inference_mode()
    def _described(self) -> list[nn.Module]:
        """Have each attention layer describe itself in a first pass, whose numbers mean nothing."""
        num_tokens, num_read = _PROBE
        device = next(self.decoder.parameters()).device
        ids = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
        cache = _StepCache([], ids)
        cache.set(ids[0])
        hidden = torch.zeros(1, num_read, self.hidden_size, device=device, dtype=next(self.decoder.parameters()).dtype)
        self._run(ids, hidden, cache)
        modules = [module for module in self.decoder.modules() if hasattr(module, "paceline")]
        return [module for module in modules if isinstance(module.paceline, CrossAttention)]

    def _run(self, input_ids: Tensor, hidden: Tensor, cache: Any) -> Tensor:
        """Hidden states (1, tokens, hidden_size) of the decoder for input_ids (1, tokens)."""
        seen = torch.ones_like(input_ids)  # or some models would count what is in the cache
        out = self.decoder(
            input_ids=input_ids,
            attention_mask=seen,
            encoder_hidden_states=hidden,
            past_key_values=cache,
            use_cache=False,
        )
        states: Tensor = out.last_hidden_state
        return states

    @property
    def cross_layers(self) -> list[CrossAttention]:
        """In the order of the decoder's layers."""
        return [module.paceline for module in self.cross_modules if isinstance(module.paceline, CrossAttention)]

    # ------------------------------------------------------------------ the encoder

    def encode(self, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> Tensor:
        """What the encoder makes of a batch of inputs: (all tokens, hidden_size), one input behind the other.

        inputs: of each, the arrays of an `app.core.media.Media`: input_ids (tokens,), or of a sound input_features
        (mel bands, frames). Tokens with 0 in attention_mask (tokens,) take up a position, and are left out.
        """
        if self.config.hears:
            features = np.stack([arrays["input_features"] for arrays in inputs])
            out = self.encoder(torch.from_numpy(features).to(self._like.device, self._like.dtype))
            heard: Tensor = out.last_hidden_state
            return heard.flatten(0, 1)
        lengths = torch.tensor([len(arrays["input_ids"]) for arrays in inputs])
        ids = torch.full((len(inputs), int(lengths.max())), self.pad_id)
        for row, arrays in zip(ids, inputs, strict=True):
            row[: len(arrays["input_ids"])] = torch.from_numpy(arrays["input_ids"].astype(np.int64))
        is_seen = torch.arange(ids.shape[1]) < lengths[:, None]
        for row, arrays in zip(is_seen, inputs, strict=True):
            if "attention_mask" in arrays:
                row[: len(arrays["input_ids"])] = torch.from_numpy(arrays["attention_mask"] != 0)
        mask = None if is_seen.all() else is_seen.long().to(self._like.device)
        ids, is_seen = ids.to(self._like.device), is_seen.to(self._like.device)
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden[is_seen]

    def store(self, hidden: Tensor, cross: ForwardContext) -> None:
        """Compute and keep K and V of the encoder's outputs (tokens, hidden_size), which are the tokens of `cross`."""
        query = hidden.new_zeros(1, 1, self.hidden_size)
        with forward_context(ForwardContext(cross.backend, None, cross)):
            for module in self.cross_modules:
                module(hidden_states=query, **{self._hidden_name: hidden[None]})

    def align(self, source: Mapping[str, NDArray[Any]], tokens: Sequence[int], first: int, num_places: int) -> Tensor:
        """Where in a sound a text is, from token `first` on: see `Looks.smoothed`."""
        speech = self.config.speech
        assert speech is not None
        looks = Looks(self.cross_layers, speech.alignment_heads)
        ids = torch.tensor([tokens], device=self._like.device)
        hidden = self.encode([source])[None]
        with looking(looks):
            self.decoder(input_ids=ids, encoder_hidden_states=hidden, use_cache=False)
        return looks.smoothed(first, num_places, speech.median_filter_width)

    # ------------------------------------------------------------------ the decoder

    def forward(self, input_ids: Tensor, positions: Tensor, cross: ForwardContext) -> Tensor:
        """Hidden states after the last norm (tokens, hidden_size), for input_ids and positions (tokens,).

        `cross`: where what their encoders have read lies.
        """
        self._cache.set(positions)
        step = current_context()
        nothing = self._like.new_empty(1, 0, self.hidden_size)
        with forward_context(ForwardContext(step.backend, step.metadata, cross)):
            return self._run(input_ids[None], nothing, self._cache)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab_size) in float32 for hidden states (n, hidden_size)."""
        self.fixed.hidden = hidden[None]
        shape_only = torch.zeros(1, hidden.shape[0], dtype=torch.int64, device=hidden.device)
        read = BaseModelOutput(last_hidden_state=hidden[None, :1])
        logits: Tensor = self.head(encoder_outputs=read, decoder_input_ids=shape_only, use_cache=False).logits[0]
        return logits.float()


def _give_own_attention(encoder: nn.Module) -> None:
    """Have an encoder attend as transformers does, with masks of its own."""
    configs: dict[int, Any] = {}
    for module in encoder.modules():
        if (config := getattr(module, "config", None)) is not None:
            if id(config) not in configs:
                configs[id(config)] = copy.deepcopy(config)
                configs[id(config)]._attn_implementation = "sdpa"
            module.config = configs[id(config)]


def _give_table(module: Any) -> None:
    """Have a layer hand out its bias by distance, (heads, distances), in the place of one for all pairs of tokens."""
    count = module.relative_attention_max_distance + 1  # from there on it is the same
    with torch.inference_mode():
        of_last = module.compute_bias(count, count)[0, :, -1]  # (heads, positions)
    table = of_last.flip(1).clone()
    module.compute_bias = lambda *_args, **_options: table


def load_encoder_decoder(
    folder: ModelFolder, methods: Methods, dtype: torch.dtype, device: torch.device, is_dummy: bool
) -> EncoderDecoder:
    """Load an encoder-decoder through transformers, or with `is_dummy` one with random weights.

    ModelError names what is not supported, or quotes transformers.
    """
    described = folder.encoder_decoder
    assert described is not None
    auto = encoder_decoder_class(described)
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    try:
        config = config_of(folder)
        if is_dummy:
            with torch.device(device):
                model = auto.from_config(config, dtype=dtype, attn_implementation=_NAME)
            fill_with_noise(model, device)
        else:
            model, info = load_pretrained(auto, folder, methods, config, dtype, attn_implementation=_NAME)
            refuse_unmatched(folder, info)
            finish_stored(model)
        model = model.to(device).eval().requires_grad_(False)
        adopt_all(model)
        return EncoderDecoder(model, described)
    except ModelError:
        raise
    except Exception as error:  # transformers raises all kinds of errors for a broken checkpoint
        raise ModelError(f"transformers cannot load {folder.path}: {quoted(error)}") from error
