"""What files of Gemma 2 and later ones say."""

from statistics import NormalDist
from typing import Any

from .file import GgufFile

Config = dict[str, Any]

_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Gemma's largest models scale attention by their width; llama.cpp, too, knows them by their number of layers."""


def gemma(file: GgufFile, config: Config) -> Config:
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


def gemma3n(file: GgufFile, config: Config) -> Config:
    """Several streams, and layers of which some leave out all but the largest activations."""
    count, shared = config["num_hidden_layers"], _shared(file, config)
    of_layers, left = file.tensors.get("per_layer_token_embd.weight"), file.tensors.get("blk.0.laurel_l.weight")
    if of_layers is None or left is None:
        raise ValueError("the file lacks per_layer_token_embd.weight or blk.0.laurel_l.weight")
    beyond = file.by_layer("activation_sparsity_scale", None, count)
    if beyond[0] is None:
        raise ValueError("the file lacks gemma3n.activation_sparsity_scale")
    theta = {
        "full_attention": config["rope_parameters"]["rope_theta"],
        "sliding_attention": file.of_model("rope.freq_base_swa", 10000.0),
    }
    return {
        "layer_types": ["sliding_attention" if local else "full_attention" for local in _local(file, config)],
        "num_kv_shared_layers": shared,
        "sliding_window": file.size("attention.sliding_window"),
        "intermediate_size": file.by_layer("feed_forward_length", None, count),
        "final_logit_softcapping": file.of_model("final_logit_softcapping", 30.0),
        "hidden_size_per_layer_input": file.size("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": of_layers.shape[0],
        "altup_num_inputs": file.size("altup.num_inputs"),
        "altup_active_idx": file.of_model("altup.active_idx", 0),
        "laurel_rank": left.shape[0],
        # Files have how many deviations the limit is above the mean; the share below it is what config.json has.
        "activation_sparsity_pattern": [NormalDist().cdf(deviations) for deviations in beyond],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()},
    }


def _shared(file: GgufFile, config: Config) -> int:
    """How many layers at the end take keys and values of earlier ones. Those that they have are left out."""
    count, shared = config["num_hidden_layers"], file.of_model("attention.shared_kv_layers", 0)
    if type(shared) is not int or not 0 <= shared < count:
        raise ValueError(f"attention.shared_kv_layers is {shared!r}")
    for layer in range(count - shared, count):
        file.leave_out([f"blk.{layer}.attn_{name}." for name in ("k", "v", "k_norm")])
    return shared


def _local(file: GgufFile, config: Config) -> list[bool]:
    """Which layers have windows."""
    is_local = file.by_layer("attention.sliding_window_pattern", None, config["num_hidden_layers"])
    if type(is_local[0]) is not bool:
        raise ValueError("the file lacks a list of layers with windows (attention.sliding_window_pattern)")
    return is_local


def gemma4(file: GgufFile, config: Config) -> Config:
    """Some layers have windows, and the others larger heads. The last layers take keys and values of earlier ones."""
    count, shared, is_local = config["num_hidden_layers"], _shared(file, config), _local(file, config)
    experts = file.of_model("expert_count", 0)
    own: Config = {
        "layer_types": ["sliding_attention" if local else "full_attention" for local in is_local],
        "num_kv_shared_layers": shared,
        "sliding_window": file.size("attention.sliding_window"),
        "hidden_size_per_layer_input": file.of_model("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": config["vocab_size"],
        "enable_moe_block": bool(experts),
        "num_experts": experts or None,
        "top_k_experts": file.of_model("expert_used_count"),
        "moe_intermediate_size": file.of_model("expert_feed_forward_length"),
    }
    return (
        own
        | _inner_sizes(file, count, shared)
        | _heads(file, config, is_local)
        | {"rope_parameters": _rope(file, config)}
    )


def _inner_sizes(file: GgufFile, count: int, shared: int) -> Config:
    """A feed-forward layer behind keys of others may be twice as wide."""
    sizes = file.by_layer("feed_forward_length", None, count)
    is_wide = sizes[-1] != sizes[0]
    if sizes != [sizes[0] * (2 if is_wide and layer >= count - shared else 1) for layer in range(count)]:
        raise ValueError(f"feed_forward_length is {sizes}")
    return {"intermediate_size": sizes[0], "use_double_wide_mlp": is_wide}


def _heads(file: GgufFile, config: Config, is_local: list[bool]) -> Config:
    """Layers without windows may have other heads, and none of values: these are their keys, before they are normed."""
    head_dim = file.size("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if (found := file.of_model(key, head_dim)) != head_dim:
            raise ValueError(f"{key} is {found}, and attention.key_length_swa {head_dim}")
    if "partial_rotary_factor" in config["rope_parameters"]:
        raise ValueError("rope.dimension_count is not attention.key_length")
    kv_heads = file.by_layer("attention.head_count_kv", config["num_attention_heads"], len(is_local))
    of_local = {heads for heads, local in zip(kv_heads, is_local, strict=True) if local}
    of_others = {heads for heads, local in zip(kv_heads, is_local, strict=True) if not local}
    with_keys = [
        layer for layer, local in enumerate(is_local) if not local and f"blk.{layer}.attn_k.weight" in file.tensors
    ]
    are_keys = any(f"blk.{layer}.attn_v.weight" not in file.tensors for layer in with_keys)
    if len(of_local) != 1 or len(of_others) != 1 or not (are_keys or of_local == of_others):
        raise ValueError(f"attention.head_count_kv is {kv_heads}")
    return {
        "head_dim": head_dim,
        "global_head_dim": config["head_dim"],
        "num_key_value_heads": of_local.pop(),
        "num_global_key_value_heads": of_others.pop(),
        "attention_k_eq_v": are_keys,
    }


def _rope(file: GgufFile, config: Config) -> Config:
    """Layers without windows rotate the first dimensions only: frequencies of the others are divided by 1e30."""
    factors = file.numbers("rope_freqs.weight") or []
    rotated = factors.count(1.0)
    if len(factors) != config["head_dim"] // 2 or min(factors[rotated:], default=1e30) < 1e29:
        raise ValueError("rope_freqs.weight does not say which dimensions are rotated")
    theta = config["rope_parameters"]["rope_theta"]
    everywhere = {"rope_type": "proportional", "partial_rotary_factor": rotated / len(factors), "rope_theta": theta}
    local = {"rope_type": "default", "rope_theta": file.of_model("rope.freq_base_swa", 10000.0)}
    return {"full_attention": everywhere, "sliding_attention": local}
