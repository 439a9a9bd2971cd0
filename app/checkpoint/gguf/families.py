"""The families that llama.cpp and transformers share, and what their files say beside sizes, in transformers' words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .file import GgufFile

Config = dict[str, Any]


def _nothing(_file: GgufFile, _config: Config) -> Config:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family, as transformers knows it."""

    model_type: str
    architecture: str
    fields: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Keys: a field of config.json, and its value where the file has no such key; None leaves it out."""
    has: Mapping[str, str] = field(default_factory=dict)
    """Fields that say whether the first layer has a tensor, and the tensor."""
    own: Callable[[GgufFile, Config], Config] = _nothing
    """What else is in config.json, or otherwise there than in other families. It may name another `model_type`.
    ValueError for what the family cannot do."""
    left_out: tuple[str, ...] = ()
    """Keys of sizes that differ by layer or mean something else, and which `own` reads."""


_EXPERTS = {
    "expert_count": ("num_experts", None),
    "expert_used_count": ("num_experts_per_tok", None),
    "expert_feed_forward_length": ("moe_intermediate_size", None),
}
_SHARED = {"expert_shared_feed_forward_length": ("shared_expert_intermediate_size", None)}
_QKV_BIAS = {"attention_bias": "attn_q.bias"}
_MLP_BIAS = {"mlp_bias": "ffn_up.bias"}
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Gemma's largest models scale attention by their width; llama.cpp, too, knows them by their number of layers."""


def _experts_always_normed(is_normed: bool) -> Callable[[GgufFile, Config], Config]:
    return lambda _file, _config: {"norm_topk_prob": is_normed}


def _llama(file: GgufFile, _config: Config) -> Config:
    """For llama.cpp, a Mixtral is a Llama with experts."""
    if not file.of_model("expert_count", 0):
        return {}
    counts = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
    own = {new: file.of_model(key) for key, new in counts.items()}
    return own | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}


def _phi3(file: GgufFile, _config: Config) -> Config:
    return {"sliding_window": file.of_model("attention.sliding_window") or None}


def _gemma(file: GgufFile, config: Config) -> Config:
    family = file.architecture
    is_largest = config["num_hidden_layers"] == _GEMMA_27B_LAYERS[family]
    width = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    own = {
        "query_pre_attn_scalar": width,
        "final_logit_softcapping": file.of_model("final_logit_softcapping", 30.0 if family == "gemma2" else None),
        "sliding_window": file.of_model("attention.sliding_window", 4096),
    }
    if family == "gemma2":
        return own | {"attn_logit_softcapping": file.of_model("attn_logit_softcapping", 50.0)}
    pattern = file.of_model("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, int):
        raise ValueError("a list of layers with windows is not supported")
    local = {"rope_type": "default", "rope_theta": file.of_model("rope.freq_base_swa", 10000.0)}
    rope = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return own | {"sliding_window_pattern": pattern, "rope_parameters": rope}


def _windows(file: GgufFile, config: Config) -> Config:
    """Windows in three of four layers, or in those of a list, which alone rotate."""
    if (window := file.of_model("attention.sliding_window")) is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
    refuse_other_theta(file, config)
    has_window = by_layer(file, "attention.sliding_window_pattern", 4, config)
    if type(has_window[0]) is int:
        has_window = [(layer + 1) % has_window[0] != 0 for layer in range(len(has_window))]
    types = ["sliding_attention" if is_local else "full_attention" for is_local in has_window]
    return {"sliding_window": window, "layer_types": types}


def _olmo2(file: GgufFile, config: Config) -> Config:
    """With windows it is an OLMo 3, whose windows rotate as if the context had not been extended."""
    if file.of_model("attention.sliding_window") is None:
        return {}
    local = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    return _windows(file, config) | {
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }


def refuse_other_theta(file: GgufFile, config: Config) -> None:
    """ValueError for a rotation of windows of its own."""
    theta = config["rope_parameters"]["rope_theta"]
    if (other := file.of_model("rope.freq_base_swa", theta)) != theta:
        raise ValueError(f"rope.freq_base_swa is {other}, and rope.freq_base {theta}")


def by_layer(file: GgufFile, key: str, default: Any, config: Config) -> list[Any]:
    """A value of each layer. A value that is no list is that of all."""
    count = config["num_hidden_layers"]
    value = file.of_model(key, default)
    values = value[:count] if isinstance(value, list) else [value] * count
    if len(values) != count or any(type(one) is not type(values[0]) for one in values):
        raise ValueError(f"{key} is {value!r}, and there are {count} layers")
    return values


def _mistral3(file: GgufFile, config: Config) -> Config:
    """Mistral Small 3, and the Ministrals 3, which scale queries by their positions."""
    own: Config = {"sliding_window": None}
    if not (beta := file.of_model("attention.temperature_scale", 0.0)):
        return own | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    return own | {"rope_parameters": config["rope_parameters"] | {"llama_4_scaling_beta": beta}}


def _gpt_oss(file: GgufFile, config: Config) -> Config:
    """Windows in every second layer. The ends of YaRN's ramp are no whole dimensions there."""
    refuse_other_theta(file, config)
    return {
        "num_local_experts": file.of_model("expert_count"),
        "num_experts_per_tok": file.of_model("expert_used_count"),
        "intermediate_size": file.of_model("expert_feed_forward_length"),
        "sliding_window": file.of_model("attention.sliding_window"),
        "rope_parameters": config["rope_parameters"] | {"truncate": False},
    }


def _llama4(file: GgufFile, config: Config) -> Config:
    """Much of it is in no key: llama.cpp, too, has the size of chunks, and knows a model by its number of experts."""
    if file.of_model("attention.sliding_window", 1) == 0:
        raise ValueError("a Llama 4 without chunks of attention is not supported")
    refuse_other_theta(file, config)
    if file.of_model("attention.sliding_window_pattern", 4) != 4:
        raise ValueError("attention.sliding_window_pattern is not 4")
    experts = file.of_model("expert_count", 0)
    if not experts:
        raise ValueError("expert_count is 0")
    file.of_model("leading_dense_block_count")  # llama.cpp reads only the step
    return {
        "num_local_experts": experts,
        "intermediate_size_mlp": config["intermediate_size"],
        "intermediate_size": file.of_model("expert_feed_forward_length"),
        "use_qk_norm": experts != 128,
    }


def _qwen3next(file: GgufFile, config: Config) -> Config:
    return _delta_nets(file, config) | {"norm_topk_prob": True}


def _qwen35(file: GgufFile, config: Config) -> Config:
    """Positions along three axes are the same for texts, so that the sizes of these count for nothing."""
    own, rope = _delta_nets(file, config), config["rope_parameters"]
    if (sections := file.of_model("rope.dimension_sections")) is not None:
        own["rope_parameters"] = rope | {"mrope_section": sections[:3], "mrope_interleaved": True}
    file.of_model("feed_forward_length")  # the mixture of experts has none
    return own


def _delta_nets(file: GgufFile, config: Config) -> Config:
    """Layers of the gated delta rule, between layers of attention."""
    interval = file.of_model("full_attention_interval", 4)
    by_interval = [(layer + 1) % interval != 0 for layer in range(config["num_hidden_layers"])]
    is_linear = by_layer(file, "attention.recurrent_layers", by_interval, config)
    heads = file.of_model("ssm.time_step_rank")
    return {
        "layer_types": ["linear_attention" if linear else "full_attention" for linear in is_linear],
        "linear_conv_kernel_dim": file.of_model("ssm.conv_kernel"),
        "linear_key_head_dim": file.of_model("ssm.state_size"),
        "linear_num_key_heads": file.of_model("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": file.of_model("ssm.inner_size") // heads,
    }


def _nemotron_h(file: GgufFile, config: Config) -> Config:
    """A layer is one thing: attention if it has heads of keys, else a feed-forward layer if it has a size of one."""
    kv_heads = by_layer(file, "attention.head_count_kv", 0, config)
    inner = by_layer(file, "feed_forward_length", 0, config)
    experts = file.of_model("expert_count", 0)
    feed_forward = "moe" if experts else "mlp"
    heads = file.of_model("ssm.time_step_rank")
    of_norms = file.of_model("attention.layer_norm_rms_epsilon"), file.of_model("attention.layer_norm_epsilon")
    own = {
        "layers_block_type": [
            "full_attention" if heads_of_layer else feed_forward if size else "linear_attention"
            for heads_of_layer, size in zip(kv_heads, inner, strict=True)
        ],
        "num_key_value_heads": max(kv_heads) or config["num_attention_heads"],
        "intermediate_size": max(inner),
        "layer_norm_epsilon": next(filter(None, of_norms), None),
        "conv_kernel": file.of_model("ssm.conv_kernel"),
        "ssm_state_size": file.of_model("ssm.state_size"),
        "n_groups": file.of_model("ssm.group_count"),
        "mamba_num_heads": heads,
        "mamba_head_dim": file.of_model("ssm.inner_size") // heads,
    }
    first = {kind: own["layers_block_type"].index(kind) for kind in own["layers_block_type"]}
    tensors = {
        "use_conv_bias": ("linear_attention", "ssm_conv1d.bias"),
        "attention_bias": ("full_attention", "attn_q.bias"),
        "mlp_bias": (feed_forward, "ffn_up.bias"),
    }
    own |= {name: f"blk.{first.get(kind)}.{tensor}" in file.tensors for name, (kind, tensor) in tensors.items()}
    if not experts:
        return own
    return own | _beside_shared(file) | {
        "moe_shared_expert_intermediate_size": file.of_model("expert_shared_feed_forward_length"),
        "moe_latent_size": file.of_model("moe_latent_size"),
    }  # fmt: skip


def _groups(file: GgufFile) -> Config:
    """How DeepSeek's routers choose experts, and what they multiply results by."""
    return {
        "n_group": file.of_model("expert_group_count", 1),
        "topk_group": file.of_model("expert_group_used_count", 1),
        "norm_topk_prob": bool(file.of_model("expert_weights_norm", False)),
        "routed_scaling_factor": file.of_model("expert_weights_scale", 1.0),
    }


def _beside_shared(file: GgufFile) -> Config:
    """Experts beside shared ones, in DeepSeek's words."""
    return _groups(file) | {
        "n_routed_experts": file.of_model("expert_count"),
        "num_experts_per_tok": file.of_model("expert_used_count"),
        "n_shared_experts": file.of_model("expert_shared_count"),
        "moe_intermediate_size": file.of_model("expert_feed_forward_length"),
    }


def _routed(file: GgufFile, _config: Config) -> Config:
    """Experts beside shared ones, chosen as by DeepSeek V3."""
    if file.of_model("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise ValueError(f"expert_gating_func is not that of the family {file.architecture}")
    return _beside_shared(file) | {"first_k_dense_replace": file.of_model("leading_dense_block_count", 0)}


_SOFTMAX, _SIGMOID = 1, 2
"""llama.cpp's numbers of what routers do with scores."""


def _deepseek2(file: GgufFile, config: Config) -> Config:
    """Latent attention: of DeepSeek-V2 if routers take a softmax of scores, else of its successors.

    Newer files have lengths of keys and values as they are stored, which are latents, and those of heads under other
    names.
    """
    key, value = (
        file.of_model(f"attention.{kind}_length_mla", file.of_model(f"attention.{kind}_length"))
        for kind in ("key", "value")
    )
    file.of_model("attention.head_count_kv")  # 1 where latents are stored, else that of queries
    rotated = file.of_model("rope.dimension_count")
    own = _groups(file) | {
        "num_key_value_heads": config["num_attention_heads"],
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "q_lora_rank": file.of_model("attention.q_lora_rank") or None,
        "kv_lora_rank": file.of_model("attention.kv_lora_rank"),
        "first_k_dense_replace": file.of_model("leading_dense_block_count", 0),
        "n_routed_experts": file.of_model("expert_count") or 1,
        "num_experts_per_tok": file.of_model("expert_used_count") or 1,
        "n_shared_experts": file.of_model("expert_shared_count", 0),
        "moe_intermediate_size": file.of_model("expert_feed_forward_length"),
    }
    has_experts = own["first_k_dense_replace"] < config["num_hidden_layers"]
    is_glm = config["num_hidden_layers"] in (46, 47, 48) and config["vocab_size"] == 154880
    gating = file.of_model("expert_gating_func") or (_SIGMOID if is_glm or not has_experts else _SOFTMAX)
    if gating == _SIGMOID:
        return own
    if gating != _SOFTMAX or own["norm_topk_prob"]:
        raise ValueError(f"expert_gating_func {gating} with expert_weights_norm is not supported")
    method = "group_limited_greedy" if own["n_group"] > 1 else "greedy"
    return own | {"topk_method": method, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]}


FAMILIES = {
    "llama": Family(model_type="llama", architecture="LlamaForCausalLM", has=_QKV_BIAS | _MLP_BIAS, own=_llama),
    "olmoe": Family(
        model_type="olmoe", architecture="OlmoeForCausalLM", fields=_EXPERTS, own=_experts_always_normed(False)
    ),
    "qwen2": Family(model_type="qwen2", architecture="Qwen2ForCausalLM"),
    "qwen2moe": Family(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        fields=_EXPERTS | _SHARED,
        own=_experts_always_normed(False),
    ),
    "qwen3": Family(model_type="qwen3", architecture="Qwen3ForCausalLM"),
    "qwen3moe": Family(
        model_type="qwen3_moe", architecture="Qwen3MoeForCausalLM", fields=_EXPERTS, own=_experts_always_normed(True)
    ),
    "qwen3next": Family(
        model_type="qwen3_next", architecture="Qwen3NextForCausalLM", fields=_EXPERTS | _SHARED, own=_qwen3next
    ),
    "qwen35": Family(model_type="qwen3_5_text", architecture="Qwen3_5ForCausalLM", own=_qwen35),
    "qwen35moe": Family(
        model_type="qwen3_5_moe_text",
        architecture="Qwen3_5MoeForCausalLM",
        fields=_EXPERTS | _SHARED,
        own=_qwen35,
        left_out=("feed_forward_length",),
    ),
    "phi3": Family(model_type="phi3", architecture="Phi3ForCausalLM", own=_phi3),
    "smollm3": Family(model_type="smollm3", architecture="SmolLM3ForCausalLM", has=_QKV_BIAS),
    "olmo2": Family(model_type="olmo2", architecture="Olmo2ForCausalLM", own=_olmo2),
    "internlm2": Family(model_type="llama", architecture="LlamaForCausalLM", has=_QKV_BIAS),
    "mistral3": Family(model_type="ministral3", architecture="Ministral3ForCausalLM", own=_mistral3),
    "llama4": Family(
        model_type="llama4_text",
        architecture="Llama4ForCausalLM",
        fields={
            "expert_used_count": ("num_experts_per_tok", None),
            "interleave_moe_layer_step": ("interleave_moe_layer_step", None),
        },
        own=_llama4,
    ),
    "gpt-oss": Family(model_type="gpt_oss", architecture="GptOssForCausalLM", own=_gpt_oss),
    "dots1": Family(model_type="dots1", architecture="Dots1ForCausalLM", own=_routed),
    "arcee": Family(model_type="arcee", architecture="ArceeForCausalLM", has=_QKV_BIAS | _MLP_BIAS),
    "ernie4_5": Family(model_type="ernie4_5", architecture="Ernie4_5ForCausalLM"),
    "exaone4": Family(model_type="exaone4", architecture="Exaone4ForCausalLM", own=_windows),
    "granite": Family(
        model_type="granite",
        architecture="GraniteForCausalLM",
        has=_QKV_BIAS | _MLP_BIAS,
        fields={
            "attention.scale": ("attention_multiplier", 1.0),
            "embedding_scale": ("embedding_multiplier", 1.0),
            "residual_scale": ("residual_multiplier", 1.0),
            "logit_scale": ("logits_scaling", 1.0),
        },
    ),
    "glm4": Family(model_type="glm4", architecture="Glm4ForCausalLM", has=_QKV_BIAS),
    "glm4moe": Family(
        model_type="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        has=_QKV_BIAS | {"use_qk_norm": "attn_q_norm.weight"},
        own=_routed,
    ),
    "command-r": Family(
        model_type="cohere",
        architecture="CohereForCausalLM",
        has={"use_qk_norm": "attn_q_norm.weight"},
        fields={"logit_scale": ("logit_scale", 1.0), "attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        left_out=("attention.layer_norm_rms_epsilon",),
    ),
    "cohere2": Family(
        model_type="cohere2",
        architecture="Cohere2ForCausalLM",
        fields={"logit_scale": ("logit_scale", 1.0), "attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        own=_windows,
        left_out=("attention.layer_norm_rms_epsilon",),
    ),
    "seed_oss": Family(
        model_type="seed_oss",
        architecture="SeedOssForCausalLM",
        has=_QKV_BIAS | {"attention_out_bias": "attn_output.bias"},
    ),
    "deepseek2": Family(
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        own=_deepseek2,
        left_out=("attention.head_count_kv", "attention.key_length", "attention.value_length"),
    ),
    **dict.fromkeys(
        ("nemotron_h", "nemotron_h_moe"),
        Family(
            model_type="nemotron_h",
            architecture="NemotronHForCausalLM",
            own=_nemotron_h,
            left_out=("attention.head_count_kv", "feed_forward_length", "attention.layer_norm_rms_epsilon"),
        ),
    ),
    "gemma": Family(model_type="gemma", architecture="GemmaForCausalLM"),
    "gemma2": Family(model_type="gemma2", architecture="Gemma2ForCausalLM", own=_gemma),
    "gemma3": Family(model_type="gemma3_text", architecture="Gemma3ForCausalLM", own=_gemma),
}
"""By llama.cpp's name."""
