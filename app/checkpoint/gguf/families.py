"""The families that llama.cpp and transformers share, and what their files say beside sizes, in transformers' words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from .experts import deepseek, ernie_moe, exaone_moe, hunyuan_moe, minimax_m2, routed
from .file import GgufFile
from .gemma import gemma, gemma3n, gemma4
from .recurrent import (
    falcon_h1,
    granite_hybrid,
    jamba,
    lfm2,
    lfm2_moe,
    mamba,
    nemotron_h,
    qwen3_5,
    qwen3_next,
)

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
    """Fields that say whether a layer has a tensor, and the tensor."""
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
_MAMBA_BIAS = {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}
_ONLY_MAMBA_BIAS = {"use_conv_bias": "ssm_conv1d.bias", "use_bias": "ssm_in.bias"}
_NO_RMS_NORM = ("attention.layer_norm_rms_epsilon",)
_NO_ATTENTION = (
    "context_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
)


def _experts_always_normed(is_normed: bool) -> Callable[[GgufFile, Config], Config]:
    return lambda _file, _config: {"norm_topk_prob": is_normed}


def _text_of_seeing(file: GgufFile, _config: Config) -> Config:
    """A Qwen that sees is one that does not, as long as it reads texts."""
    for key in ("rope.dimension_sections", "n_deepstack_layers"):  # which say how images are read
        file.of_model(key)
    return {"norm_topk_prob": True} if file.of_model("expert_count", 0) else {}


def _llama(file: GgufFile, _config: Config) -> Config:
    """For llama.cpp, a Mixtral is a Llama with experts."""
    if not file.of_model("expert_count", 0):
        return {}
    counts = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
    own = {new: file.of_model(key) for key, new in counts.items()}
    return own | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}


def _exaone(file: GgufFile, _config: Config) -> Config:
    """A Llama under other names, whose norms' epsilon has been under two."""
    keys = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    return {"rms_norm_eps": file.first_of_model(*keys)}


def _stablelm(file: GgufFile, _config: Config) -> Config:
    """For llama.cpp, too, layers without a norm for the feed-forward layer are parallel, whatever the key says."""
    file.of_model("use_parallel_residual")
    return {"use_parallel_residual": not file.has_in_layers("ffn_norm.weight")}


def _nemotron(file: GgufFile, _config: Config) -> Config:
    """Files have the epsilon of its norms under the other kind's name, too."""
    file.of_model("attention.layer_norm_rms_epsilon")
    return {"norm_eps": file.of_model("attention.layer_norm_epsilon")}


def _minicpm(file: GgufFile, config: Config) -> Config:
    """A Granite under other names. Files that do not say what it multiplies by are older than these keys."""
    if missing := [key for key in ("embedding_scale", "residual_scale", "logit_scale") if not file.of_model(key)]:
        raise ValueError(f"the file lacks minicpm.{missing[0]}")
    return _granite_scales(file, config)


def _olmo(file: GgufFile, _config: Config) -> Config:
    """Norms without weights, and with an epsilon that is always the same."""
    if not isclose(eps := file.of_model("attention.layer_norm_epsilon", 1e-5), 1e-5, rel_tol=1e-6):
        raise ValueError(f"attention.layer_norm_epsilon is {eps}, and not 1e-5")
    return {"clip_qkv": file.of_model("attention.clamp_kqv")}


def _granite(file: GgufFile, config: Config) -> Config:
    """Granite, with experts or without. A Granite 4 that has no recurrent layers is one, and has sizes of them."""
    for name in ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"):
        file.of_model(f"ssm.{name}")
    if not file.of_model("rope.scaling.finetuned", True):
        raise ValueError("a Granite without rotation (rope.scaling.finetuned) is not supported")
    own = _granite_scales(file, config)
    experts, used = file.of_model("expert_count", 0), file.of_model("expert_used_count", 0)
    shared = file.of_model("expert_shared_feed_forward_length", 0)
    if not experts:
        return own
    own |= {"num_local_experts": experts, "num_experts_per_tok": used}
    if not shared:
        return own | {"model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"]}
    kind = {"model_type": "granitemoeshared", "architectures": ["GraniteMoeSharedForCausalLM"]}
    return own | kind | {"shared_intermediate_size": shared}


def _granite_scales(file: GgufFile, config: Config) -> Config:
    """What Granite multiplies attention, embeddings, layers and logits by."""
    return {
        "attention_multiplier": file.of_model("attention.scale") or config["head_dim"] ** -0.5,
        "embedding_multiplier": file.of_model("embedding_scale") or 1.0,
        "residual_multiplier": file.of_model("residual_scale") or 1.0,
        "logits_scaling": file.of_model("logit_scale") or 1.0,
    }


def _granite_hybrid(file: GgufFile, config: Config) -> Config:
    return _granite_scales(file, config) | granite_hybrid(file, config)


def _exaone_moe(file: GgufFile, config: Config) -> Config:
    own = exaone_moe(file) | _windows(file, config)
    if own["sliding_window"] is None:
        raise ValueError("the file lacks attention.sliding_window")
    return own


def _phi3(file: GgufFile, _config: Config) -> Config:
    return {"sliding_window": file.of_model("attention.sliding_window") or None}


def _windows(file: GgufFile, config: Config) -> Config:
    """Windows in three of four layers, or in those of a list, which alone rotate."""
    if (window := file.of_model("attention.sliding_window")) is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
    refuse_other_theta(file, config)
    has_window = file.by_layer("attention.sliding_window_pattern", 4, config["num_hidden_layers"])
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
    # What reads images for these is in another file, and texts have the same position along all axes.
    "qwen2vl": Family(model_type="qwen2", architecture="Qwen2ForCausalLM", own=_text_of_seeing),
    "qwen3vl": Family(model_type="qwen3", architecture="Qwen3ForCausalLM", own=_text_of_seeing),
    "qwen3vlmoe": Family(
        model_type="qwen3_moe", architecture="Qwen3MoeForCausalLM", fields=_EXPERTS, own=_text_of_seeing
    ),
    "qwen3next": Family(
        model_type="qwen3_next", architecture="Qwen3NextForCausalLM", fields=_EXPERTS | _SHARED, own=qwen3_next
    ),
    "qwen35": Family(model_type="qwen3_5_text", architecture="Qwen3_5ForCausalLM", own=qwen3_5),
    "qwen35moe": Family(
        model_type="qwen3_5_moe_text",
        architecture="Qwen3_5MoeForCausalLM",
        fields=_EXPERTS | _SHARED,
        own=qwen3_5,
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
    "dots1": Family(model_type="dots1", architecture="Dots1ForCausalLM", own=routed),
    "arcee": Family(model_type="arcee", architecture="ArceeForCausalLM", has=_QKV_BIAS | _MLP_BIAS),
    "ernie4_5": Family(model_type="ernie4_5", architecture="Ernie4_5ForCausalLM"),
    "exaone": Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        own=_exaone,
        left_out=_NO_RMS_NORM,
    ),
    "minicpm": Family(model_type="granite", architecture="GraniteForCausalLM", own=_minicpm),
    "olmo": Family(
        model_type="olmo",
        architecture="OlmoForCausalLM",
        own=_olmo,
        left_out=_NO_RMS_NORM,
    ),
    "phi2": Family(
        model_type="phi",
        architecture="PhiForCausalLM",
        fields={"attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        left_out=_NO_RMS_NORM,
    ),
    "nemotron": Family(
        model_type="nemotron",
        architecture="NemotronForCausalLM",
        has=_QKV_BIAS | _MLP_BIAS,
        own=_nemotron,
        left_out=_NO_RMS_NORM,
    ),
    "stablelm": Family(
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        fields={"attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        has={"use_qkv_bias": "attn_q.bias"},
        own=_stablelm,
        left_out=_NO_RMS_NORM,
    ),
    "exaone4": Family(model_type="exaone4", architecture="Exaone4ForCausalLM", own=_windows),
    **dict.fromkeys(
        ("granite", "granitemoe"),
        Family(
            model_type="granite",
            architecture="GraniteForCausalLM",
            has=_QKV_BIAS | _MLP_BIAS,
            own=_granite,
        ),
    ),
    "granitehybrid": Family(
        model_type="granitemoehybrid",
        architecture="GraniteMoeHybridForCausalLM",
        has=_QKV_BIAS | _MAMBA_BIAS,
        own=_granite_hybrid,
        left_out=("attention.head_count_kv",),
    ),
    "falcon-h1": Family(
        model_type="falcon_h1",
        architecture="FalconH1ForCausalLM",
        has=_QKV_BIAS | _MLP_BIAS | _MAMBA_BIAS | {"mamba_rms_norm": "ssm_norm.weight"},
        own=falcon_h1,
    ),
    "jamba": Family(
        model_type="jamba",
        architecture="JambaForCausalLM",
        has=_MAMBA_BIAS,
        own=jamba,
        left_out=("attention.head_count_kv",),
    ),
    "mamba": Family(
        model_type="mamba", architecture="MambaForCausalLM", has=_ONLY_MAMBA_BIAS, own=mamba, left_out=_NO_ATTENTION
    ),
    "mamba2": Family(
        model_type="mamba2", architecture="Mamba2ForCausalLM", has=_ONLY_MAMBA_BIAS, own=mamba, left_out=_NO_ATTENTION
    ),
    "lfm2": Family(
        model_type="lfm2",
        architecture="Lfm2ForCausalLM",
        has={"conv_bias": "shortconv.conv.bias"},
        own=lfm2,
        left_out=("attention.head_count_kv",),
    ),
    "lfm2moe": Family(
        model_type="lfm2_moe",
        architecture="Lfm2MoeForCausalLM",
        fields=_EXPERTS,
        has={"conv_bias": "shortconv.conv.bias", "use_expert_bias": "exp_probs_b.bias"},
        own=lfm2_moe,
        left_out=("attention.head_count_kv",),
    ),
    "apertus": Family(model_type="apertus", architecture="ApertusForCausalLM", has=_QKV_BIAS),
    "hunyuan-dense": Family(model_type="hunyuan_v1_dense", architecture="HunYuanDenseV1ForCausalLM", has=_QKV_BIAS),
    "hunyuan-moe": Family(
        model_type="hunyuan_v1_moe", architecture="HunYuanMoEV1ForCausalLM", has=_QKV_BIAS, own=hunyuan_moe
    ),
    "minimax-m2": Family(model_type="minimax_m2", architecture="MiniMaxM2ForCausalLM", own=minimax_m2),
    "exaone-moe": Family(model_type="exaone_moe", architecture="ExaoneMoeForCausalLM", own=_exaone_moe),
    "ernie4_5-moe": Family(
        model_type="ernie4_5_moe",
        architecture="Ernie4_5_MoeForCausalLM",
        has={"use_bias": "attn_q.bias"},
        own=ernie_moe,
    ),
    "glm4": Family(model_type="glm4", architecture="Glm4ForCausalLM", has=_QKV_BIAS),
    "glm4moe": Family(
        model_type="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        has=_QKV_BIAS | {"use_qk_norm": "attn_q_norm.weight"},
        own=routed,
    ),
    "command-r": Family(
        model_type="cohere",
        architecture="CohereForCausalLM",
        has={"use_qk_norm": "attn_q_norm.weight"},
        fields={"logit_scale": ("logit_scale", 1.0), "attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        left_out=_NO_RMS_NORM,
    ),
    "cohere2": Family(
        model_type="cohere2",
        architecture="Cohere2ForCausalLM",
        fields={"logit_scale": ("logit_scale", 1.0), "attention.layer_norm_epsilon": ("layer_norm_eps", None)},
        own=_windows,
        left_out=_NO_RMS_NORM,
    ),
    "seed_oss": Family(
        model_type="seed_oss",
        architecture="SeedOssForCausalLM",
        has=_QKV_BIAS | {"attention_out_bias": "attn_output.bias"},
    ),
    "deepseek2": Family(
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        own=deepseek,
        left_out=("attention.head_count_kv", "attention.key_length", "attention.value_length"),
    ),
    **dict.fromkeys(
        ("nemotron_h", "nemotron_h_moe"),
        Family(
            model_type="nemotron_h",
            architecture="NemotronHForCausalLM",
            has=_QKV_BIAS | _MLP_BIAS | {"use_conv_bias": "ssm_conv1d.bias"},
            own=nemotron_h,
            left_out=("attention.head_count_kv", "feed_forward_length", "attention.layer_norm_rms_epsilon"),
        ),
    ),
    "gemma": Family(model_type="gemma", architecture="GemmaForCausalLM"),
    "gemma2": Family(model_type="gemma2", architecture="Gemma2ForCausalLM", own=gemma),
    "gemma3": Family(model_type="gemma3_text", architecture="Gemma3ForCausalLM", own=gemma),
    "gemma3n": Family(
        model_type="gemma3n_text", architecture="Gemma3nForCausalLM", own=gemma3n, left_out=("feed_forward_length",)
    ),
    "gemma4": Family(
        model_type="gemma4_text",
        architecture="Gemma4ForCausalLM",
        fields={"final_logit_softcapping": ("final_logit_softcapping", None)},
        own=gemma4,
        left_out=("attention.head_count_kv", "feed_forward_length"),
    ),
}
"""By llama.cpp's name."""
