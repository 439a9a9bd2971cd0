"""The shape of a decoder, read from a checkpoint's config.json.

Checkpoints leave out values that equal their family's defaults, and so these stand here. transformers knows them too,
but importing it takes three seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal


class NotCarriedError(Exception):
    """The checkpoint's family is known, but the checkpoint uses something that the hand-written decoder lacks."""


@dataclass(frozen=True)
class RopeConfig:
    """One kind of rotary embedding (Su et al., 2021); a model may have several, by layer."""

    theta: float
    rotary_dim: int
    """How many dimensions of a head, from the first on, are rotated; the others stay as they are."""
    linear_factor: float = 1.0
    """Positions are divided by this (Chen et al., 2023)."""
    llama3: tuple[float, float, float, int] | None = None
    """Llama 3.1's scaling: factor, low_freq_factor, high_freq_factor, original context length."""
    factors: tuple[float, ...] | None = None
    """What the frequency of each pair of dimensions is divided by."""
    yarn: tuple[float, float, float, int, bool] | None = None
    """YaRN's scaling (Peng et al., 2023): factor, beta_fast, beta_slow, original context length, and whether the
    dimensions at which it begins and ends are made whole."""
    scale: float = 1.0
    """What cosines and sines are multiplied by."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts, in the place of a feed-forward layer."""

    num_experts: int
    top_k: int
    """Experts that a token passes."""
    intermediate_size: int
    """Of one of them."""
    normalizes: bool
    """Whether the weights of a token's experts add up to 1."""
    in_layers: tuple[bool, ...]
    """Which layers have experts."""
    clamp: tuple[float, float] | None = None
    """Gain and limit of the clamped activation of gpt-oss; None if the activation is that of other layers."""
    has_bias: bool = False
    """Whether router and experts have biases."""
    inputs_first: bool = False
    """Whether tensors of all experts are (experts, inputs, outputs) in checkpoints."""
    block: str = "mlp"
    """What a layer calls it, in checkpoints."""
    router: str = "gate"
    """What the block calls its router."""
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """What each expert calls its gate, up and down projection; the first two may be one."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """All the ways in which the families that `app.models.decoder` runs differ."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    activation: str
    windows: tuple[int | None, ...]
    """The attention window of each layer, in tokens; None for full attention."""
    ropes: tuple[RopeConfig | None, ...]
    """The rotary embedding of each layer; None for a layer without positions."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """Norms before attention and MLP (Llama), after them (OLMo 2), or both (Gemma)."""
    offset_norm: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """The norm of queries and keys: of each head (Qwen 3), or of all heads together (OLMo 2)."""
    merged_in_checkpoint: bool = False
    """Whether checkpoints have qkv_proj and gate_up_proj (Phi-3) instead of q_proj, k_proj and so on."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    has_sinks: bool = False
    """Whether each head has an attention sink."""
    experts: ExpertsConfig | None = None


_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "smollm3": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
    },
    "phi3": {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "gemma2": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "olmo2": {
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    },
}
_DEFAULTS["mixtral"] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
_DEFAULTS["olmoe"] = {
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
}
_DEFAULTS["qwen3_moe"] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}
_DEFAULTS["gpt_oss"] = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "attention_bias": True,
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
_DEFAULTS["qwen3"] = _DEFAULTS["qwen2"] | {"head_dim": 128}
_DEFAULTS["gemma3_text"] = _DEFAULTS["gemma2"] | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}

_COMMON: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
}


_ONE_KIND_OF_LAYER = {
    "llama": "full_attention",
    "olmo2": "full_attention",
    "olmoe": "full_attention",
    "mistral": "sliding_attention",
    "mixtral": "sliding_attention",
    "phi3": "sliding_attention",
    "qwen3_moe": "sliding_attention",
}
"""Families whose layers all have the window, if there is one, or none of them, whatever else the checkpoint says."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def max_position_embeddings(raw: dict[str, Any], text: dict[str, Any]) -> int | None:
    """The context length of a config.json, whose part on text is `text`, or of its family; None if neither says.

    Raises ValueError if the value is not a length.
    """
    known = _DEFAULTS.get(str(text.get("model_type")), {}) | text | raw
    value = known.get("max_position_embeddings") or known.get("n_positions")
    if value is not None and (type(value) is not int or value < 2):
        raise ValueError(f"max_position_embeddings is {value!r}")
    rope = known.get("rope_parameters") or known.get("rope_scaling")
    if value is None or not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type")) != "dynamic":
        return value
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor < math.inf:
        raise ValueError(f"the factor of the dynamic rotary embedding is {factor!r}")
    return int(value * factor)  # longer than it was trained for, which is what this embedding is for


def parse_decoder_config(raw: dict[str, Any]) -> DecoderConfig:
    """Read the config.json of one of FAMILIES; NotCarriedError if the decoder cannot run it as it stands.

    Raises ValueError, LookupError, ArithmeticError, TypeError or AttributeError for values that make no sense.
    """
    family = raw["model_type"]
    full = _COMMON | _DEFAULTS[family] | raw
    if full["num_key_value_heads"] is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if full["head_dim"] is None:
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    for name in _SIZES:
        if type(full[name]) is not int or full[name] < 1:
            raise ValueError(f"{name} is {full[name]!r}")
    if type(full["sliding_window"]) not in (int, type(None)):
        raise ValueError(f"sliding_window is {full['sliding_window']!r}")
    if not isinstance(full["rms_norm_eps"], float | int):
        raise ValueError(f"rms_norm_eps is {full['rms_norm_eps']!r}")
    if full["num_attention_heads"] % full["num_key_value_heads"]:
        raise ValueError(f"num_key_value_heads is {full['num_key_value_heads']!r}, which does not divide the heads")
    if (listed := full["layer_types"]) and len(listed) != full["num_hidden_layers"]:
        raise ValueError(f"layer_types are of {len(listed)} layers, not {full['num_hidden_layers']}")
    if unknown := set(listed or ()) - {"full_attention", "sliding_attention"}:
        raise NotCarriedError(f"layers of type {', '.join(sorted(unknown))}")
    full["layer_types"] = _layer_types(family, full)
    base: dict[str, Any] = {
        "vocab_size": full["vocab_size"],
        "hidden_size": full["hidden_size"],
        "intermediate_size": full["intermediate_size"],
        "num_heads": full["num_attention_heads"],
        "num_kv_heads": full["num_key_value_heads"],
        "head_dim": full["head_dim"],
        "norm_eps": full["rms_norm_eps"],
        "max_position_embeddings": full["max_position_embeddings"],
        "tie_word_embeddings": full["tie_word_embeddings"],
        "activation": full.get("hidden_activation") or full["hidden_act"],
        "attention_scale": full["head_dim"] ** -0.5,
        "qkv_bias": full["attention_bias"],
        "o_bias": full["attention_bias"],
        "mlp_bias": full["mlp_bias"],
        "windows": _windows(full),
        "ropes": (_rope(full, full),) * full["num_hidden_layers"],
    }
    return DecoderConfig(**base | FAMILIES[family](full))


def _layer_types(family: str, full: dict[str, Any]) -> list[str]:
    """Which layers attend to a window only: by the checkpoint's list, if the family reads one, or by its rule."""
    layers = range(full["num_hidden_layers"])
    if family in ("qwen2", "qwen3", "qwen3_moe") and not full.get("use_sliding_window"):
        return ["full_attention" for _ in layers]
    if family in _ONE_KIND_OF_LAYER:
        return [_ONE_KIND_OF_LAYER[family] for _ in layers]
    if full["layer_types"]:
        return list(full["layer_types"])
    if "sliding_window_pattern" in full:  # Gemma: every n-th layer sees everything
        sliding = [(i + 1) % full["sliding_window_pattern"] != 0 for i in layers]
    elif family == "smollm3":
        sliding = [bool(full.get("use_sliding_window")) and not has_rope for has_rope in _has_rope(full)]
    else:
        sliding = [i >= full["max_window_layers"] for i in layers]
    return ["sliding_attention" if is_sliding else "full_attention" for is_sliding in sliding]


def _windows(full: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(full["sliding_window"] if kind == "sliding_attention" else None for kind in full["layer_types"])


def _has_rope(full: dict[str, Any]) -> list[bool]:
    if full.get("no_rope_layers"):
        return [bool(has_rope) for has_rope in full["no_rope_layers"]]
    return [(i + 1) % full["no_rope_layer_interval"] != 0 for i in range(full["num_hidden_layers"])]


def _rope(full: dict[str, Any], source: dict[str, Any]) -> RopeConfig:
    """The rotary embedding, from either form: `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    scaling = source.get("rope_scaling") or {}
    parameters = {"rope_theta": source.get("rope_theta"), **scaling, **(source.get("rope_parameters") or {})}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    partial = parameters.get("partial_rotary_factor") or full.get("partial_rotary_factor") or 1.0
    theta = float(parameters["rope_theta"] or full["rope_theta"])
    rotary_dim = int(full["head_dim"] * partial)
    if kind == "default":
        return RopeConfig(theta, rotary_dim)
    if kind == "linear":
        return RopeConfig(theta, rotary_dim, linear_factor=float(parameters["factor"]))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (float(parameters[name]) for name in names)
        context = int(parameters["original_max_position_embeddings"])
        return RopeConfig(theta, rotary_dim, llama3=(factor, low, high, context))
    if kind == "yarn" and parameters.get("factor") and parameters.get("original_max_position_embeddings"):
        return _yarn(theta, rotary_dim, parameters)
    factors = parameters.get("long_factor")
    if kind == "longrope" and parameters["short_factor"] == factors and parameters.get("attention_factor") == 1.0:
        return RopeConfig(theta, rotary_dim, factors=tuple(map(float, factors)))  # as GGUF files of Llama 3 have it
    raise NotCarriedError(f"rotary embedding of type {kind}")


def _yarn(theta: float, rotary_dim: int, parameters: dict[str, Any]) -> RopeConfig:
    factor, scale = float(parameters["factor"]), parameters.get("attention_factor")

    def magnitude(gain: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * gain * math.log(factor) + 1.0

    if scale is None:
        gain, of_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        scale = magnitude(gain) / magnitude(of_all) if gain and of_all else magnitude(1.0)
    fast, slow = float(parameters.get("beta_fast") or 32), float(parameters.get("beta_slow") or 1)
    context, truncates = int(parameters["original_max_position_embeddings"]), parameters.get("truncate", True)
    return RopeConfig(theta, rotary_dim, yarn=(factor, fast, slow, context, bool(truncates)), scale=float(scale))


# ---------------------------------------------------------------------- what sets each family apart


def _plain(_full: dict[str, Any]) -> dict[str, Any]:
    return {}


def _phi3(_full: dict[str, Any]) -> dict[str, Any]:
    return {"merged_in_checkpoint": True}


def _qwen2(_full: dict[str, Any]) -> dict[str, Any]:
    return {"qkv_bias": True, "o_bias": False}


def _qwen3(_full: dict[str, Any]) -> dict[str, Any]:
    return {"qk_norm": "head"}


def _smollm3(full: dict[str, Any]) -> dict[str, Any]:
    rope = _rope(full, full)
    return {"ropes": tuple(rope if has_rope else None for has_rope in _has_rope(full))}


def _olmo2(_full: dict[str, Any]) -> dict[str, Any]:
    return {"norm_placement": "post", "qk_norm": "full"}


def _gemma2(full: dict[str, Any]) -> dict[str, Any]:
    if full.get("use_bidirectional_attention"):
        raise NotCarriedError("bidirectional attention")
    return {
        "norm_placement": "sandwich",
        "offset_norm": True,
        "embedding_scale": full["hidden_size"] ** 0.5,
        "attention_scale": full["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": full["attn_logit_softcapping"],
        "logit_softcap": full["final_logit_softcapping"],
    }


def _gemma3(full: dict[str, Any]) -> dict[str, Any]:
    by_type = full.get("rope_parameters") or {}
    if "sliding_attention" in by_type:  # one set of parameters for each type of layer
        sources = {kind: {"rope_parameters": by_type[kind]} for kind in ("full_attention", "sliding_attention")}
    else:
        sources = {"full_attention": full, "sliding_attention": {"rope_theta": full["rope_local_base_freq"]}}
    ropes = {kind: _rope(full, source) for kind, source in sources.items()}
    return _gemma2(full) | {"qk_norm": "head", "ropes": tuple(ropes[kind] for kind in full["layer_types"])}


def _mixtral(full: dict[str, Any]) -> dict[str, Any]:
    names = ("w1", "w3", "w2")
    experts = _experts(full, "num_local_experts", "intermediate_size", normalizes=True)
    return {"experts": replace(experts, block="block_sparse_moe", names=names)}


def _olmoe(full: dict[str, Any]) -> dict[str, Any]:
    if full.get("clip_qkv") is not None:
        raise NotCarriedError("clip_qkv")
    return {"qk_norm": "full", "experts": _experts(full, "num_experts", "intermediate_size")}


def _qwen3_moe(full: dict[str, Any]) -> dict[str, Any]:
    # transformers writes "num_local_experts" for what the checkpoints of this family call "num_experts".
    full = full | {"num_experts": full.get("num_local_experts", full["num_experts"])}
    dense, step = full["mlp_only_layers"] or (), full["decoder_sparse_step"]
    layers = [layer not in dense and (layer + 1) % step == 0 for layer in range(full["num_hidden_layers"])]
    return {"qk_norm": "head", "experts": _experts(full, "num_experts", "moe_intermediate_size", layers=layers)}


def _gpt_oss(full: dict[str, Any]) -> dict[str, Any]:
    experts = _experts(full, "num_local_experts", "intermediate_size", normalizes=True)
    experts = replace(
        experts,
        clamp=(float(full["swiglu_alpha"]), float(full["swiglu_limit"])),
        has_bias=True,
        inputs_first=True,
        router="router",
        names=("gate_up_proj", "down_proj"),
    )
    return {"has_sinks": True, "experts": experts}


def _experts(
    full: dict[str, Any], count: str, size: str, normalizes: bool | None = None, layers: Sequence[bool] = ()
) -> ExpertsConfig:
    """`count` and `size`: the names of how many experts there are, and of their size; `layers`: see `in_layers`."""
    for name in (count, size, "num_experts_per_tok"):
        if type(full[name]) is not int or full[name] < 1:
            raise ValueError(f"{name} is {full[name]!r}")
    if full["num_experts_per_tok"] > full[count]:
        raise ValueError(f"num_experts_per_tok is {full['num_experts_per_tok']}, and there are {full[count]} experts")
    return ExpertsConfig(
        num_experts=full[count],
        top_k=full["num_experts_per_tok"],
        intermediate_size=full[size],
        normalizes=bool(full["norm_topk_prob"]) if normalizes is None else normalizes,
        in_layers=tuple(layers) or (True,) * full["num_hidden_layers"],
    )


FAMILIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "llama": _plain,
    "mistral": _plain,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
"""By model type: a function from config.json to the fields of DecoderConfig that differ from Llama's."""
