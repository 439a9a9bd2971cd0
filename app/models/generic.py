"""Any transformers causal model, with Paceline's attention in place of its own.

transformers lets a library register an attention function, which every model then calls with its queries, keys and
values after rotation. The model runs unmodified, on one row of tokens, and without a cache of its own.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers import __version__ as version
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.attention.layer import Attention, AttentionConfig
from app.errors import ModelError

_NAME = "paceline"
_OWN_CODE = "code that comes with a checkpoint (auto_map) is not run"
_MIXING_ROPES = {"longrope", "dynamic"}
"""Rotary embeddings that rotate a token by the longest request of its batch."""
_CAUSAL_LAYERS = {"full_attention", "sliding_attention", "attention"}
_CHANGES_SCORES = ("s_aux", "position_bias", "alibi", "cross_attention_kv")
"""Options of transformers' attention calls that change the result, and are not carried."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the interface's; what to see is in the forward context
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' side of the seam: query (1, heads, tokens, head_dim) to (1, tokens, heads, v_head_dim)."""
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if not hasattr(module, "paceline"):
        _describe(module, q, k, v, options)
        return v.new_zeros(1, q.shape[0], q.shape[1], v.shape[2]), None
    out = module.paceline(q, k, v)
    return out.view(1, q.shape[0], q.shape[1], -1), None


def _describe(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> None:
    """First call of a layer, in the dry run at load: see what kind of attention it wants, and give it that."""
    odd = [name for name in _CHANGES_SCORES if options.get(name) is not None]
    if odd:
        raise ModelError(f"attention with {', '.join(odd)} is not supported")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ModelError("attention that is not causal is not supported")
    scale = options.get("scaling")
    module.paceline = Attention(
        AttentionConfig(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            v_head_dim=v.shape[2],
            scale=q.shape[2] ** -0.5 if scale is None else float(scale),
            window=options.get("sliding_window"),
            softcap=options.get("softcap"),
        )
    )


class GenericModel(nn.Module):
    """The same interface as `app.models.decoder.Decoder`, for whatever transformers can load."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])

    def forward(self, input_ids: Tensor, positions: Tensor, logits_at: Tensor) -> Tensor:
        """input_ids and positions (tokens,) int64, logits_at (n,) token indices; float32 (n, vocab_size)."""
        out = self.model(
            input_ids=input_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=logits_at
        )
        logits: Tensor = out.logits[0]
        if logits.shape[0] != logits_at.shape[0]:  # a few models compute all
            logits = logits[logits_at]
        return logits.float()


def load_generic(folder: Path, raw: dict[str, Any], dtype: torch.dtype, device: torch.device) -> GenericModel:
    """Load a checkpoint, whose config.json is `raw`, through transformers.

    ModelError names what is not supported about it, or what transformers says against it.
    """
    file, kind = folder / "config.json", raw["model_type"]
    if kind not in CONFIG_MAPPING:
        own_code = f"; {_OWN_CODE}" if "auto_map" in raw else ""
        raise ModelError(f"{file}: transformers {version} knows no model_type {kind}{own_code}")
    try:
        return _load(folder, dtype, device)
    except ModelError:
        raise
    except Exception as error:  # transformers raises anything over what a checkpoint may say
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{file}: transformers {version} has no {kind} that generates text; {_OWN_CODE}"
            ) from error
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"transformers cannot load {folder}: {type(error).__name__}: {reason}") from error


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> GenericModel:
    # trust_remote_code: False is not the default, which is to ask on the terminal.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _refuse_unsupported(config)
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=_NAME,
        use_safetensors=True,
        device_map=None,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(f"{folder} lacks {len(missing)} tensors of the model, {missing[0]} for one")
    if getattr(model, "_is_stateful", False):
        raise ModelError(f"{config.model_type} keeps a recurrent state, which is not supported")
    generic = GenericModel(model.to(device).eval())
    tokens = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.inference_mode():
        generic(tokens, torch.arange(2, device=device), tokens[:1])  # the layers describe themselves
    num_layers = sum(isinstance(module, Attention) for module in generic.modules())
    expected = config.get_text_config().num_hidden_layers
    if num_layers != expected:
        raise ModelError(
            f"{config.model_type}: {num_layers} of {expected} layers attend through transformers' "
            "attention interface; the others cannot be given a paged cache"
        )
    return generic


def _refuse_unsupported(config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(f"{kind} is an encoder-decoder model, which is not supported")
    config = config.get_text_config()  # a model that also sees or hears: of the part that Paceline runs
    if getattr(config, "alibi", False):
        raise ModelError(f"{kind} with ALiBi positions is not supported")
    if unknown := set(getattr(config, "layer_types", None) or ()) - _CAUSAL_LAYERS:
        raise ModelError(f"{kind} has layers of type {', '.join(sorted(unknown))}, which are not supported")
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(p for p in parameters.values() if isinstance(p, dict))):
        if rope.get("rope_type") in _MIXING_ROPES:
            raise ModelError(
                f"{kind} with rotary embedding of type {rope['rope_type']} is not supported: "
                "it would let the requests of a batch change each other's results"
            )
