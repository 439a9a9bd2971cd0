"""What files say of families with layers that keep a state."""

from typing import Any

from .experts import SIGMOID, beside_shared, require_gating
from .file import GgufFile

Config = dict[str, Any]


def qwen3_next(file: GgufFile, config: Config) -> Config:
    return _delta_nets(file, config) | {"norm_topk_prob": True}


def qwen3_5(file: GgufFile, config: Config) -> Config:
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
    is_linear = file.by_layer("attention.recurrent_layers", by_interval, config["num_hidden_layers"])
    heads = file.size("ssm.time_step_rank")
    return {
        "layer_types": ["linear_attention" if linear else "full_attention" for linear in is_linear],
        "linear_conv_kernel_dim": file.size("ssm.conv_kernel"),
        "linear_key_head_dim": file.size("ssm.state_size"),
        "linear_num_key_heads": file.size("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": file.size("ssm.inner_size") // heads,
    }


def _kv_heads(file: GgufFile, config: Config) -> tuple[list[int], int]:
    """Heads of keys of each layer, of which only those that attend have some; and how many these have."""
    by_layer = file.by_layer("attention.head_count_kv", 0, config["num_hidden_layers"])
    return by_layer, max(by_layer) or config["num_attention_heads"]


def nemotron_h(file: GgufFile, config: Config) -> Config:
    """A layer is one thing: attention if it has heads of keys, else a feed-forward layer if it has a size of one."""
    kv_heads, num_kv_heads = _kv_heads(file, config)
    inner = file.by_layer("feed_forward_length", 0, config["num_hidden_layers"])
    experts = file.of_model("expert_count", 0)
    feed_forward = "moe" if experts else "mlp"
    heads = file.size("ssm.time_step_rank")
    own = {
        "layers_block_type": [
            "full_attention" if heads_of_layer else feed_forward if size else "linear_attention"
            for heads_of_layer, size in zip(kv_heads, inner, strict=True)
        ],
        "num_key_value_heads": num_kv_heads,
        "intermediate_size": max(inner),
        "layer_norm_epsilon": file.first_of_model("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "ssm_state_size": file.size("ssm.state_size"),
        "n_groups": file.size("ssm.group_count"),
        "mamba_num_heads": heads,
        "mamba_head_dim": file.size("ssm.inner_size") // heads,
    }
    if not experts:
        return own
    return own | beside_shared(file) | {
        "moe_shared_expert_intermediate_size": file.of_model("expert_shared_feed_forward_length"),
        "moe_latent_size": file.of_model("moe_latent_size"),
    }  # fmt: skip


def mamba(file: GgufFile, config: Config) -> Config:
    """Mamba and Mamba 2, which have no attention and no feed-forward layers: files say that their sizes are 0, and a
    length of contexts that counts for nothing. Falcon's has norms without weights.
    """
    for key in ("context_length", "feed_forward_length", "attention.head_count"):
        file.of_model(key)
    eps = file.of_model("attention.layer_norm_rms_epsilon")
    own = {
        "layer_norm_epsilon": eps,
        "expand": _expand(file, config),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "state_size": file.size("ssm.state_size"),
    }
    rank = file.size("ssm.time_step_rank")
    if file.architecture == "mamba2":
        head_dim = file.size("ssm.inner_size") // rank
        return own | {"num_heads": rank, "head_dim": head_dim, "n_groups": file.size("ssm.group_count")}
    own |= {"time_step_rank": rank}
    if not file.of_model("ssm.dt_b_c_rms", False):
        return own
    return own | {"mixer_rms_eps": eps, "model_type": "falcon_mamba", "architectures": ["FalconMambaForCausalLM"]}


def _expand(file: GgufFile, config: Config) -> int:
    """How often the width goes into that of recurrent layers."""
    inner, width = file.size("ssm.inner_size"), config["hidden_size"]
    if inner % width:
        raise ValueError(f"ssm.inner_size is {inner}, and embedding_length {width}")
    return int(inner // width)


def _mamba_2(file: GgufFile) -> Config:
    """Mamba 2 beside attention, in the words of Granite 4 and Falcon-H1."""
    heads = file.size("ssm.time_step_rank")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": file.size("ssm.inner_size") // heads,
        "mamba_n_groups": file.size("ssm.group_count"),
        "mamba_d_state": file.size("ssm.state_size"),
        "mamba_d_conv": file.size("ssm.conv_kernel"),
    }


def granite_hybrid(file: GgufFile, config: Config) -> Config:
    """A layer with heads of keys is attention, and a model without experts has what these share."""
    kv_heads, num_kv_heads = _kv_heads(file, config)
    experts, shared = file.of_model("expert_count", 0), file.of_model("expert_shared_feed_forward_length")
    return _mamba_2(file) | {
        "layer_types": ["full_attention" if heads else "linear_attention" for heads in kv_heads],
        "num_key_value_heads": num_kv_heads,
        "position_embedding_type": "rope" if file.of_model("rope.scaling.finetuned", True) else None,
        "num_local_experts": experts,
        "num_experts_per_tok": file.of_model("expert_used_count", 0),
        "shared_intermediate_size": shared if experts else config["intermediate_size"],
        "mamba_expand": _expand(file, config),
    }


def falcon_h1(file: GgufFile, _config: Config) -> Config:
    """Its multipliers are in the weights. llama.cpp's norm is behind the gate."""
    return _mamba_2(file) | {
        "mamba_d_ssm": file.size("ssm.inner_size"),
        "mamba_norm_before_gate": False,
    }


def jamba(file: GgufFile, config: Config) -> Config:
    """Attention in layers with heads of keys, and experts in those with a router."""
    layers = range(config["num_hidden_layers"])
    kv_heads, num_kv_heads = _kv_heads(file, config)
    attends = _period("attention.head_count_kv", [heads > 0 for heads in kv_heads])
    routes = _period("ffn_gate_inp.weight", [f"blk.{layer}.ffn_gate_inp.weight" in file.tensors for layer in layers])
    return {
        "num_key_value_heads": num_kv_heads,
        "attn_layer_period": attends[0],
        "attn_layer_offset": attends[1],
        "expert_layer_period": routes[0],
        "expert_layer_offset": routes[1],
        "num_experts": file.of_model("expert_count") or 1,
        "num_experts_per_tok": file.of_model("expert_used_count") or 1,
        "mamba_expand": _expand(file, config),
        "mamba_d_state": file.size("ssm.state_size"),
        "mamba_d_conv": file.size("ssm.conv_kernel"),
        "mamba_dt_rank": file.size("ssm.time_step_rank"),
    }


def _period(name: str, is_one: list[bool]) -> tuple[int, int]:
    """How many layers there are from one of a kind to the next, and the first. ValueError if that differs."""
    ones = [layer for layer, one in enumerate(is_one) if one] + [len(is_one), 2 * len(is_one) + 1]
    first, period = ones[0], ones[1] - ones[0]
    period = max(period, first + 1)
    if [layer % period == first for layer in range(len(is_one))] != is_one:
        raise ValueError(f"{name}: layers of a kind do not come in regular turns")
    return period, first


def lfm2(file: GgufFile, config: Config) -> Config:
    """Short convolutions, and attention in layers with heads of keys."""
    kv_heads, num_kv_heads = _kv_heads(file, config)
    return {
        "layer_types": ["full_attention" if heads else "conv" for heads in kv_heads],
        "num_key_value_heads": num_kv_heads,
        "conv_L_cache": file.size("shortconv.l_cache"),
        "norm_eps": file.of_model("attention.layer_norm_rms_epsilon"),
        "block_auto_adjust_ff_dim": False,
    }


def lfm2_moe(file: GgufFile, config: Config) -> Config:
    """The same, with experts behind the first layers."""
    require_gating(file, SIGMOID)
    return lfm2(file, config) | {"num_dense_layers": file.of_model("leading_dense_block_count", 0)}
