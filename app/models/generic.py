"""Runs any causal model of transformers, with Paceline's attention instead of its own.

Of one that also sees or hears, it runs the part on text.

transformers lets a library register an attention function, which every model then calls with its rotated queries and
keys, and its values. The model's code is unchanged; it reads one row of tokens, and keeps no cache of its own.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers import __version__ as version
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention.backends.torch_paged import TorchPagedBackend
from ..attention.config import AttentionConfig, LayerCache
from ..attention.context import ForwardContext, forward_context
from ..attention.layer import Attention
from ..checkpoint.folder import ModelFolder
from ..errors import ModelError, quoted, text_of
from ..layers.linear import Linear
from ..layers.methods import Methods
from ..layers.recurrent import Recurrent, RecurrentInParts, RecurrentStep, StatePart, step_of
from .classes import auto_class, config_of
from .fixed_ropes import fix_ropes
from .fusion import fuse
from .latents import Latents, keep_latents
from .noise import fill_with_noise
from .places import Places
from .recurrent import keep_states
from .stored import finish_stored, load_pretrained
from .weights import refuse_unmatched

log = logging.getLogger(__name__)

_NAME = "paceline"
_OWN_CODE = "code that comes with a checkpoint (auto_map) is not run"
_ROUNDING = 0.1
"""The largest difference between two computations of a token, relative to its length, that rounding explains."""
_PROBE = 64
"""Tokens of a pass that finds out which layers get all of them."""
_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid", "hybrid_sliding"}
_KEEPING_STATES = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
_NEITHER = {"mlp", "moe"}
"""transformers' names for kinds of layers."""
_CHANGES_SCORES = ("position_bias", "alibi", "cross_attention_kv")
"""Options of transformers' attention calls that change the result, and that no backend here supports."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: query (1, heads, tokens, head_dim) to (1, tokens, heads, v_head_dim)."""
    if attention_mask is not None:  # the forward context says what a token sees
        raise ModelError("attention with a mask of the model's own is not supported")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    latents: Latents | None = getattr(module, "latents", None)
    if latents:
        options["scaling"] = options.get("scaling") or q.shape[2] ** -0.5
        q = latents.queries(q)
    if not hasattr(module, "paceline"):
        _describe(module, q, k, v, options)
    out = module.paceline(q, k, v, options.get("s_aux")).view(*q.shape[:2], -1)
    return (latents.values(out) if latents else out)[None], None


def _describe(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> None:
    """Give a layer the attention that it asks for in its first call, which is made when the model is loaded."""
    odd = [name for name in _CHANGES_SCORES if options.get(name) is not None]
    if odd:
        raise ModelError(f"attention with {', '.join(odd)} is not supported")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ModelError("attention that is not causal is not supported")
    scale = options.get("scaling")
    chunk = _chunk(module)
    module.paceline = Attention(
        AttentionConfig(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            v_head_dim=v.shape[2],
            scale=q.shape[2] ** -0.5 if scale is None else float(scale),
            window=options.get("sliding_window") if chunk is None else chunk,
            chunked=chunk is not None,
            softcap=options.get("softcap"),
            sees_ahead=getattr(module, "sees_ahead", False),
            values_in_keys=hasattr(module, "latents"),
        )
    )


def _chunk(module: Any) -> int | None:
    """The size of the chunks that a layer attends in. transformers tells its masks alone."""
    types = getattr(getattr(module, "config", None), "layer_types", None)
    if "chunked_attention" not in (types or ()) or types[module.layer_idx] != "chunked_attention":
        return None
    size: int = module.config.attention_chunk_size
    return size


class _NoAttention(TorchPagedBackend):
    """The backend of a first pass through the layers, when there are no K/V caches yet."""

    def __init__(self) -> None:
        self._called: list[LayerCache] = []
        self.last_keys: list[Tensor] = []
        """Of the last token, in each layer."""

    def store(self, cache: LayerCache, k: Tensor, *_arguments: Any) -> None:
        """Raises ModelError for a layer whose keys of one call would overwrite those of another."""
        if any(cache is other for other in self._called):
            raise ModelError("a layer that attends several times in a pass is not supported")
        self._called.append(cache)
        self.last_keys.append(k[-1])

    def attend(self, cache: LayerCache, q: Tensor, _sinks: Tensor | None, _metadata: object) -> Tensor:
        """Returns zeros."""
        return q.new_zeros(q.shape[0], cache.config.num_heads * cache.config.v_head_dim)


class BodyOutput:
    """What a causal model reads of its body's output: hidden states, and None for everything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: object) -> Tensor | tuple[()]:
        return self.last_hidden_state if key == 0 else ()

    def __getattr__(self, _name: str) -> None:
        return None


class FixedHidden(nn.Module):
    """Stands in the place of a causal model's body, and returns hidden states that were computed before.

    What else the head reads of it, such as a factor, is the body's. But it has no part that could be called.
    """

    hidden: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._body = (body,)  # in a tuple, so that it is no submodule

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._body[0], name)
        if isinstance(value, nn.Module):
            raise AttributeError(name)
        return value

    def forward(self, *_args: Any, **_options: Any) -> BodyOutput:
        return BodyOutput(self.hidden)


class GenericModel(nn.Module):
    """A model of transformers with the interface of `app.models.decoder.Decoder`.

    transformers' causal models consist of a body, and a head that may scale or cap its logits. They are run separately.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = map(int, model.get_output_embeddings().weight.shape)
        name = model.base_model_prefix if hasattr(model, model.base_model_prefix) else "model"  # Llama 4 calls it so
        holder, body = model, getattr(model, name)
        if isinstance(inner := getattr(body, "decoder", None), PreTrainedModel):  # as OPT has one
            holder, name, body = body, "decoder", inner
        self.body: nn.Module = body
        self.fixed = FixedHidden(self.body)
        setattr(holder, name, self.fixed)
        self.places = Places.of(self.body)
        self.head = model
        self.continues_prompts = True
        """Whether a prompt may be computed in several pieces."""

    def forward(self, input_ids: Tensor, positions: Tensor, recurrent: RecurrentStep = ()) -> Tensor:
        """Hidden states after the last norm (tokens, hidden_size), for input_ids and positions (tokens,).

        `recurrent`: the step, for layers that keep states.
        """
        self.places.set(positions)
        with step_of(recurrent):
            out = self.body(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def layers_of_all_tokens(self) -> set[Linear]:
        """The linear layers that a pass calls once, with all of its tokens: an expert of some gets only its own."""
        counts: dict[Linear, list[int]] = {layer: [] for layer in self.modules() if isinstance(layer, Linear)}
        hooks = [
            layer.register_forward_pre_hook(lambda own, given: counts[own].append(given[0].numel() // own.in_features))
            for layer in counts
        ]
        tokens = torch.arange(_PROBE, device=next(self.parameters()).device)
        recurrent = [layer for layer in self.modules() if isinstance(layer, RecurrentInParts)]
        for layer in recurrent:
            layer.memory = [torch.zeros(1, *kind.shape, dtype=kind.dtype, device=tokens.device) for kind in layer.kinds]
        with forward_context(ForwardContext(_NoAttention(), None)):
            self(tokens % self.vocab_size, tokens, [StatePart(slice(0, _PROBE), slice(0, 1), True)])
        for layer in recurrent:
            layer.memory = ()
        for hook in hooks:
            hook.remove()
        return {layer for layer, called in counts.items() if called == [_PROBE]}

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab_size) in float32 for hidden states (n, hidden_size)."""
        self.fixed.hidden = hidden[None]
        shape_only = torch.zeros(1, hidden.shape[0], dtype=torch.int64, device=hidden.device)
        logits: Tensor = self.head(input_ids=shape_only, use_cache=False).logits[0]
        return logits.float()


def load_generic(
    folder: ModelFolder,
    methods: Methods,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    takes_adapters: bool,
    is_dummy: bool = False,
    divide: Callable[[Any, bool], GenericModel] | None = None,
) -> GenericModel:
    """Load a checkpoint through transformers, or with `is_dummy` a model with random weights.

    `divide` makes of transformers' model what is run, which takes adapters or not; by default that is its part on text.

    ModelError names what is not supported, or quotes transformers.
    """
    path, kind = folder.path, folder.model_type
    file = path / "config.json"
    own_code = f"; {_OWN_CODE}" if "auto_map" in folder.config else ""
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{file}: transformers {version} knows no model_type {kind}{own_code}")
    try:
        config = config_of(folder)
        if (auto := auto_class(config, folder.architecture)) is None:
            raise ModelError(f"{file}: transformers {version} has no {kind} that generates from text alone{own_code}")
        _refuse_unsupported(config)
        model = _load(auto, folder, methods, config, dtype) if not is_dummy else _make_up(auto, config, dtype, device)
        model = model.to(device).eval().requires_grad_(False)
        fix_ropes(model, max_model_len, device)
        if not takes_adapters:  # an adapter may change how latents expand
            keep_latents(model)
        return (divide or _divide)(model, takes_adapters)
    except ModelError:
        raise
    except Exception as error:  # transformers raises all kinds of errors for a broken checkpoint
        of_text = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[kind], None)
        if _NAME in error.args or not getattr(of_text, "_supports_attention_backend", True):
            raise ModelError(f"{kind} does not attend through transformers' attention interface") from error
        says_little = isinstance(error, LookupError | AttributeError)  # a name and no more
        reason = quoted(error) if says_little else text_of(error)
        raise ModelError(f"transformers cannot load {path}: {reason}") from error


def _load(auto: Any, folder: ModelFolder, methods: Methods, config: Any, dtype: torch.dtype) -> Any:
    """transformers' model with Paceline's attention, and every tensor of the checkpoint in it."""
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    model, info = load_pretrained(auto, folder, methods, config, dtype, attn_implementation=_NAME)
    refuse_unmatched(folder, info)
    finish_stored(model)
    return model


def _make_up(auto: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with Paceline's attention, and random weights."""
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("load_format: dummy weights of a quantized checkpoint are for models that the decoder runs")
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype, attn_implementation=_NAME)
    fill_with_noise(model, device)
    return model


def _divide(model: Any, takes_adapters: bool) -> GenericModel:
    fuse(model, takes_adapters)
    return split(model)


def _without_senses(model: Any, called: set[nn.Module]) -> GenericModel:
    generic = GenericModel(_reader(model))
    _drop_unused(generic.body, called)
    return generic


@torch.inference_mode()
def split(model: Any, make: Callable[[Any], GenericModel] | None = None) -> GenericModel:
    """Body and head of a model. A first pass describes its layers, a second one shows that the parts make the whole.

    `make` makes the model of them; by default it is served for text.
    """
    kind, device = model.config.model_type, model.device
    tokens, positions = torch.zeros(2, dtype=torch.int64, device=device), torch.arange(2, device=device)
    with forward_context(ForwardContext(_NoAttention(), None)), _calls() as called:  # see `_describe`
        whole = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0].float()
    try:
        with forward_context(ForwardContext(_NoAttention(), None)):
            generic = make(model) if make else _without_senses(model, called)
            in_two = generic.compute_logits(generic(tokens, positions))
    except (AttributeError, TypeError):  # the head wants more of the body than hidden states
        in_two = None
    if in_two is None or not torch.equal(whole, in_two):
        raise ModelError(f"{kind} is not a body and a head, and cannot be run as these")
    with forward_context(ForwardContext(_NoAttention(), None)):
        _keep_states(generic, model.config.get_text_config(), tokens, positions)
    if not any(isinstance(module, Recurrent) for module in generic.modules()):
        _check_tokens(generic, kind)
    return generic


def _check_tokens(generic: GenericModel, kind: str) -> None:
    """Raise ModelError if a token is computed otherwise alone than behind others to which it does not attend.

    Then its position is not what the step says, or tokens are mixed by something else than attention.
    """
    tokens = torch.arange(_PROBE, device=next(generic.parameters()).device)
    found = []
    for positions in (tokens, tokens[-1:]):
        backend = _NoAttention()
        with forward_context(ForwardContext(backend, None)):
            hidden = generic(positions % generic.vocab_size, positions)
        found.append(torch.cat([hidden[-1], *(keys.flatten() for keys in backend.last_keys)]).float())
    behind, alone = found
    if not (alone - behind).norm() < _ROUNDING * alone.norm():
        raise ModelError(f"{kind}: a token is computed otherwise alone than behind others, so it cannot be batched")


def _reader(model: Any) -> Any:
    """The part of a model that also sees which is a model of text by itself, head included, as Llama 4 has one."""
    part = getattr(model, "language_model", None)
    is_whole = isinstance(part, PreTrainedModel) and part.get_output_embeddings() is not None
    if is_whole:
        log.info("of this model, the one that reads and writes text is served")
    return part if is_whole else model


@contextmanager
def _calls() -> Iterator[set[nn.Module]]:
    """The modules that are called inside this block."""
    called: set[nn.Module] = set()
    hook = register_module_forward_pre_hook(lambda module, _: called.add(module))
    try:
        yield called
    finally:
        hook.remove()


class _Unused(nn.Module):
    """Stands in the place of a part that a text does not pass. A body may still ask where it is."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        weight = next(part.parameters())
        self.device, self.dtype = weight.device, weight.dtype


def _drop_unused(body: nn.Module, called: set[nn.Module]) -> None:
    """Free the parts of a body that see or hear, which are those that a text does not pass."""
    parts = {name: part for name, part in body.named_children() if called.isdisjoint(part.modules())}
    for name, part in parts.items():
        if any(True for _ in part.parameters()):
            setattr(body, name, _Unused(part))
            log.info("this model is served for text alone, without its %s", name)


def _keep_states(generic: GenericModel, config: Any, tokens: Tensor, positions: Tensor) -> None:
    """Have layers keep their states. ModelError if tokens are mixed by others than these, and by attention."""
    kind = config.model_type
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    left_out = getattr(config, "cross_attention_layers", None) or ()  # they attend to images, and texts pass them by
    types = [name for layer, name in enumerate(types) if layer not in left_out]
    expected = sum(name in _ATTENDING for name in types)
    layers = [module for module in generic.modules() if isinstance(module, Attention)]
    num_layers, num_chunked = len(layers), sum(layer.config.chunked for layer in layers)
    if num_chunked != types.count("chunked_attention"):
        raise ModelError(f"{kind}: layers that attend in chunks do not say of which size")
    if num_layers != expected:
        raise ModelError(
            f"{kind}: {num_layers} of {expected} layers attend through transformers' "
            "attention interface; the others cannot be given a paged cache"
        )
    if expected := sum(name in _KEEPING_STATES for name in types):
        keepers = keep_states(generic.body, tokens[None], positions[None])
        if len(keepers) != expected:
            raise ModelError(
                f"{kind}: {len(keepers)} of {expected} layers keep their states in transformers' cache; "
                "the others cannot be given any"
            )
        different = {type(keeper.module): keeper for keeper in keepers}  # modules of one class are alike in this
        generic.continues_prompts = all(keeper.continues_prompts() for keeper in different.values())


def _refuse_unsupported(config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(f"{kind} is an encoder-decoder model, which is not supported")
    config = config.get_text_config()  # of a multimodal model, Paceline runs the part on text
    if getattr(config, "alibi", False):
        raise ModelError(f"{kind} with ALiBi positions is not supported")
    if unknown := set(getattr(config, "layer_types", None) or ()) - _ATTENDING - _KEEPING_STATES - _NEITHER:
        raise ModelError(f"{kind} has layers of type {', '.join(sorted(unknown))}, which are not supported")
