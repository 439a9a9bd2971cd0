"""From a GGUF file's metadata to transformers' config.json, for families that llama.cpp and transformers share."""

import math
from typing import Any

from .file import GgufFile

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OTHER_NORMS = {"command-r": ("attention.layer_norm_epsilon", "layer_norm_eps")}
"""What stands in the place of the last of these."""
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_BIASES = {
    "llama": {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"},
    "internlm2": {"attention_bias": "attn_q.bias"},
    "smollm3": {"attention_bias": "attn_q.bias"},
    "granite": {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"},
    "glm4": {"attention_bias": "attn_q.bias"},
    "seed_oss": {"attention_bias": "attn_q.bias", "attention_out_bias": "attn_output.bias"},
    "command-r": {"use_qk_norm": "attn_q_norm.weight"},
}
"""Fields that say whether layers have a tensor."""
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "olmoe": ("olmoe", "OlmoeForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
    "internlm2": ("llama", "LlamaForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "glm4": ("glm4", "Glm4ForCausalLM"),
    "command-r": ("cohere", "CohereForCausalLM"),
    "seed_oss": ("seed_oss", "SeedOssForCausalLM"),
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
"""By llama.cpp's name: transformers' model_type and class."""
_MIXTRAL = ("mixtral", "MixtralForCausalLM")
"""For llama.cpp this is a Llama with experts."""
_WITH_EXPERTS = {"llama", "olmoe", "qwen2moe", "qwen3moe"}
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Gemma's largest models scale attention by their width; llama.cpp, too, knows them by their number of layers."""


def model_config(file: GgufFile) -> dict[str, Any] | None:
    """config.json of the model in a file; None for a family that is not among these.

    Raises ValueError for what the file says and the family cannot do.
    """
    family = file.architecture
    if family not in _FAMILIES:
        return None
    has_experts = bool(file.of_model("expert_count", 0))
    model_type, architecture = _MIXTRAL if family == "llama" and has_experts else _FAMILIES[family]
    sizes = dict(_SIZES)
    if family in _OTHER_NORMS:
        del sizes["attention.layer_norm_rms_epsilon"]
        sizes |= [_OTHER_NORMS[family]]
    config: dict[str, Any] = {field: file.of_model(key) for key, field in sizes.items()}
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    if odd := [field for field, value in config.items() if type(value) not in (int, float) or value <= 0]:
        raise ValueError(f"{odd[0]} is {config[odd[0]]!r}")
    head_dim = file.of_model("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    if type(head_dim) is not int or head_dim < 1:
        raise ValueError(f"attention.key_length is {head_dim!r}")
    if file.of_model("attention.value_length", head_dim) != head_dim:
        raise ValueError("values of another length than keys are not supported")
    config |= {
        "model_type": model_type,
        "architectures": [architecture],
        "head_dim": head_dim,
        "vocab_size": vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        # Families have defaults, which may be beyond the vocabulary. The tokenizer says which tokens these are.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if file.of_model("vocab_size", config["vocab_size"]) != config["vocab_size"]:
        raise ValueError(f"vocab_size is not that of the embeddings, which have {config['vocab_size']} tokens")
    if has_experts and family not in _WITH_EXPERTS:
        raise ValueError(f"experts of the family {family} are not supported")
    return config | _of_family(file, family, config)


def other_config(file: GgufFile, config: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """config.json of another family: `config` is transformers' own, which was read from these keys."""
    for key in keys:
        file.of_model(key)
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        config.pop(name, None)
    if any(file.of_model(key) is not None for key in ("rope.freq_base", "rope.dimension_count")):
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        config["rope_parameters"] = _rope(file, config | {"head_dim": head_dim})
    return config | {"vocab_size": vocab_size(file)}


def vocab_size(file: GgufFile) -> int:
    """How many tokens the model has embeddings for. ValueError if the tokenizer has more."""
    if "token_embd.weight" not in file.tensors:
        raise ValueError("the file lacks token_embd.weight")
    size, tokens = file.tensors["token_embd.weight"].shape[0], len(file.get("tokenizer.ggml.tokens") or ())
    if tokens > size:
        raise ValueError(f"the tokenizer has {tokens} tokens, and the model embeddings for {size}")
    return size


def _of_family(file: GgufFile, family: str, config: dict[str, Any]) -> dict[str, Any]:
    """What sets a family apart."""
    rope = _rope(file, config)
    if config["model_type"] == "mixtral":
        counts = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
        return {"rope_parameters": rope} | {field: file.of_model(key) for key, field in counts.items()}
    if family in _BIASES:
        own = {key: f"blk.0.{name}" in file.tensors for key, name in _BIASES[family].items()}
        if family == "granite":
            own |= {field: file.of_model(key, 1.0) for key, field in _GRANITE.items()}
        if family == "command-r":
            own["logit_scale"] = file.of_model("logit_scale", 1.0)
        return {"rope_parameters": rope} | own
    if family.endswith("moe"):
        experts = {field: value for key, field in _EXPERTS.items() if (value := file.of_model(key)) is not None}
        if family == "qwen2moe":
            experts["shared_expert_intermediate_size"] = file.of_model("expert_shared_feed_forward_length")
        return {"rope_parameters": rope, "norm_topk_prob": family == "qwen3moe"} | experts
    if family == "phi3":
        return {"rope_parameters": rope, "sliding_window": file.of_model("attention.sliding_window") or None}
    if family in _GEMMA_27B_LAYERS:
        return _gemma(file, family, config, rope)
    return {"rope_parameters": rope}


def _gemma(file: GgufFile, family: str, config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    is_largest = config["num_hidden_layers"] == _GEMMA_27B_LAYERS[family]
    width = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    own = {
        "query_pre_attn_scalar": width,
        "final_logit_softcapping": file.of_model("final_logit_softcapping", 30.0 if family == "gemma2" else None),
        "sliding_window": file.of_model("attention.sliding_window", 4096),
    }
    if family == "gemma2":
        return own | {
            "rope_parameters": rope,
            "attn_logit_softcapping": file.of_model("attn_logit_softcapping", 50.0),
        }
    pattern = file.of_model("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, int):
        raise ValueError("a list of layers with windows is not supported")
    local = {"rope_type": "default", "rope_theta": file.of_model("rope.freq_base_swa", 10000.0)}
    return own | {
        "sliding_window_pattern": pattern,
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }


def _rope(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding, as `rope_parameters` of transformers."""
    default_theta = 1000000.0 if file.architecture == "gemma3" else 10000.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": file.of_model("rope.freq_base", default_theta)}
    if (rotated := file.of_model("rope.dimension_count", config["head_dim"])) != config["head_dim"]:
        rope["partial_rotary_factor"] = rotated / config["head_dim"]
    factor = file.of_model("rope.scaling.factor") or file.of_model("rope.scale_linear") or 1.0
    kind = file.of_model("rope.scaling.type", "linear")
    context = file.of_model("rope.scaling.original_context_length", config["max_position_embeddings"])
    scale = file.of_model("rope.scaling.attn_factor", 1.0)
    file.of_model("rope.scaling.finetuned")  # says how the model was made
    if (factors := _factors(file)) is not None:
        if kind == "yarn" or factor != 1.0:
            raise ValueError(f"rope.scaling.type {kind} beside factors of rotary frequencies is not supported")
        long, short = factors
        rope |= {"rope_type": "longrope", "long_factor": long, "short_factor": short, "attention_factor": scale}
        return rope | {"original_max_position_embeddings": context}
    if kind == "yarn":
        scale *= file.of_model("rope.scaling.yarn_attn_factor", 1.0) * (1 + 0.1 * math.log(factor))
        return rope | {
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": scale,
            "original_max_position_embeddings": context,
            "beta_fast": file.of_model("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": file.of_model("rope.scaling.yarn_beta_slow", 1.0),
        }
    if kind not in ("linear", "none") or scale != 1.0:
        raise ValueError(f"rope.scaling.type {kind} with attn_factor {scale} is not supported")
    return rope if kind == "none" or factor == 1.0 else rope | {"rope_type": "linear", "factor": factor}


def _factors(file: GgufFile) -> tuple[list[float], list[float]] | None:
    """What rotary frequencies are divided by, for long and for short texts: for Llama 3 these are the same."""
    if (same := file.numbers("rope_freqs.weight")) is not None:
        return same, same
    long, short = file.numbers("rope_factors_long.weight"), file.numbers("rope_factors_short.weight")
    return None if long is None or short is None else (long, short)
