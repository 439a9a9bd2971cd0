"""What files say of experts and their routers."""

from typing import Any

from .file import GgufFile

Config = dict[str, Any]

SOFTMAX, SIGMOID = 1, 2
"""llama.cpp's numbers of what routers do with scores."""


def groups(file: GgufFile) -> Config:
    """How DeepSeek's routers choose experts, and what they multiply results by."""
    return {
        "n_group": file.of_model("expert_group_count", 1),
        "topk_group": file.of_model("expert_group_used_count", 1),
        "norm_topk_prob": bool(file.of_model("expert_weights_norm", False)),
        "routed_scaling_factor": file.of_model("expert_weights_scale", 1.0),
    }


def beside_shared(file: GgufFile) -> Config:
    """Experts beside shared ones, in DeepSeek's words."""
    return groups(file) | {
        "n_routed_experts": file.of_model("expert_count"),
        "num_experts_per_tok": file.of_model("expert_used_count"),
        "n_shared_experts": file.of_model("expert_shared_count"),
        "moe_intermediate_size": file.of_model("expert_feed_forward_length"),
    }


def require_gating(file: GgufFile, gating: int) -> None:
    """ValueError if routers do something else with scores."""
    if file.of_model("expert_gating_func", gating) != gating:
        raise ValueError(f"expert_gating_func is not that of the family {file.architecture}")


def routed(file: GgufFile, _config: Config) -> Config:
    """Experts beside shared ones, chosen as by DeepSeek V3."""
    require_gating(file, SIGMOID)
    return beside_shared(file) | {"first_k_dense_replace": file.of_model("leading_dense_block_count", 0)}


def deepseek(file: GgufFile, config: Config) -> Config:
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
    own = groups(file) | {
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
    gating = file.of_model("expert_gating_func") or (SIGMOID if is_glm or not has_experts else SOFTMAX)
    if gating == SIGMOID:
        return own
    if gating != SOFTMAX or own["norm_topk_prob"]:
        raise ValueError(f"expert_gating_func {gating} with expert_weights_norm is not supported")
    method = "group_limited_greedy" if own["n_group"] > 1 else "greedy"
    return own | {"topk_method": method, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]}


def exaone_moe(file: GgufFile) -> Config:
    """Experts beside shared ones, behind the first layers."""
    require_gating(file, SIGMOID)
    file.of_model("expert_shared_feed_forward_length")  # that of one expert, times their number
    return groups(file) | {
        "num_experts": file.size("expert_count"),
        "num_experts_per_tok": file.size("expert_used_count"),
        "moe_intermediate_size": file.size("expert_feed_forward_length"),
        "num_shared_experts": file.size("expert_shared_count"),
        "first_k_dense_replace": file.of_model("leading_dense_block_count", 0),
    }


def ernie_moe(file: GgufFile, config: Config) -> Config:
    """Experts in every so many layers behind the first ones."""
    require_gating(file, SOFTMAX)
    file.of_model("expert_shared_feed_forward_length")  # that of one expert, times their number
    return {
        "moe_num_experts": file.size("expert_count"),
        "moe_k": file.size("expert_used_count"),
        "moe_intermediate_size": file.size("expert_feed_forward_length"),
        "moe_num_shared_experts": file.of_model("expert_shared_count", 0),
        "moe_layer_start_index": file.of_model("leading_dense_block_count", 0),
        "moe_layer_end_index": config["num_hidden_layers"] - 1,
        "moe_layer_interval": file.of_model("interleave_moe_layer_step", 1),
    }


def hunyuan_moe(file: GgufFile, config: Config) -> Config:
    """Experts beside one that is shared, all of the same size."""
    require_gating(file, SOFTMAX)
    for key, value in (
        ("expert_feed_forward_length", config["intermediate_size"]),
        ("expert_shared_feed_forward_length", config["intermediate_size"]),
        ("expert_shared_count", 1),
    ):
        if (found := file.of_model(key, value)) != value:
            raise ValueError(f"{key} is {found!r}, and not {value}")
    return {"num_experts": file.size("expert_count"), "moe_topk": file.size("expert_used_count")}


def minimax_m2(file: GgufFile, _config: Config) -> Config:
    """Experts in all layers, and no other feed-forward layers."""
    require_gating(file, SIGMOID)
    return {
        "num_local_experts": file.size("expert_count"),
        "num_experts_per_tok": file.size("expert_used_count"),
        "intermediate_size": file.size("expert_feed_forward_length"),
    }
