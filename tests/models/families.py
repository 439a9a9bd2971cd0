"""Tiny random models of many families, as checkpoints on disk."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel

VOCAB_SIZE = 199  # odd: nothing may rely on a multiple of a tile

_TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "original_max_position_embeddings": 64,
}
_HALF_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_WINDOW = {"sliding_window": 20}

_EYES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_CHUNKED = {  # attention in chunks, and queries that are scaled by their positions
    "num_hidden_layers": 4,
    "head_dim": 16,
    "attention_chunk_size": 24,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 96,
    "floor_scale": 20,
    "attn_scale": 0.7,
}

DECODER: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": _LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
    "Mistral": {**_WINDOW, "head_dim": 24},
    "Qwen2": {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1, "tie_word_embeddings": True},
    "Qwen3": {"head_dim": 24},
    "SmolLM3": {"rope_parameters": _YARN_ROPE},
    "Phi3": {"rope_parameters": _HALF_ROPE},
    "Gemma2": {**_WINDOW, "head_dim": 24, "query_pre_attn_scalar": 20},
    "Gemma3Text": {**_WINDOW, "head_dim": 24, "sliding_window_pattern": 2},
    "Olmo2": {},
    "Qwen3Moe": {**_MOE, "head_dim": 24, "mlp_only_layers": [1], "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 4, "intermediate_size": 48},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, **_WINDOW},
}
"""Families of the hand-written decoder: name of the configuration class, less "Config", to what is special here."""

GENERIC: dict[str, dict[str, Any]] = {
    "GPTNeoX": {},
    "Cohere": {},
    "GPT2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "Starcoder2": _WINDOW,
    "Qwen2Moe": {**_MOE, "shared_expert_intermediate_size": 32},
    "DeepseekV3": {  # keys and values of different size
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "GraniteSWA": {**_WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "MiMoV2Flash": {
        **_WINDOW,
        "head_dim": 24,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "Llama4Text": _CHUNKED,
    "Gemma3": {  # it also sees; served for text
        "text_config": {**_TINY, **_WINDOW, "head_dim": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"num_hidden_layers": 4},
        "vision_config": _EYES,
        "mm_tokens_per_image": 4,
    },
}
"""Families that only transformers knows, each of which has something that others lack; see also test_breadth.py."""

_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LATENT = {  # attention by latent vectors, with one group of experts
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_CONV = {"layer_types": ["conv", "full_attention", "conv"]}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_ZAMBA = {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4, "attention_head_dim": 32}

RECURRENT: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    "Mamba2": {"state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
    "Jamba": {**_MOE, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8},
    "Bamba": {**_MAMBA2, "attn_layer_indices": [1], "head_dim": 16},
    "FalconH1": {**_MAMBA2, "mamba_d_ssm": 128, "head_dim": 16},
    "GraniteMoeHybrid": {
        **_MAMBA2,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "NemotronH": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "num_hidden_layers": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "head_dim": 16,
    },
    "Zamba": {**_ZAMBA, "mamba_d_state": 8, "mamba_dt_rank": 8, "n_mamba_heads": 2, "num_key_value_heads": 4},
    "Zamba2": {**_ZAMBA, "num_mem_blocks": 1, "mamba_d_state": 16, "mamba_ngroups": 1, "n_mamba_heads": 4}
    | {"chunk_size": 16, "use_mem_rope": True},
    "Lfm2": {**_CONV, "block_ff_dim": 112},
    "Lfm2Moe": {**_CONV, **_MOE, "num_dense_layers": 1},
    "Lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention"], "head_dim": 16, **_WINDOW},
    "Qwen3Next": {**_LINEAR, **_MOE, "shared_expert_intermediate_size": 32},
    "Qwen3_5Text": _LINEAR,
    "Qwen3_5MoeText": {**_LINEAR, **_MOE, "shared_expert_intermediate_size": 32},
    "OlmoHybrid": _LINEAR,
    "KimiLinear": {**_LINEAR, **_LATENT, **_MOE, "linear_head_dim": 16, "linear_num_heads": 4},
    "BailingHybrid": {**_LINEAR, **_LATENT, **_MOE, "num_local_experts": 4, "first_k_dense_replace": 1},
}
"""Families with layers that keep states."""

_QWEN_EYES = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
_EARS = {"num_mel_bins": 16, "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1}
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}

SEEING: dict[str, dict[str, Any]] = {
    "Llava": {
        "text_config": {**_TINY, "model_type": "llama"},
        "vision_config": {**_EYES, "model_type": "clip_vision_model"},
    },
    "Mistral3": {
        "text_config": {**_TINY, "model_type": "mistral", "head_dim": 16},
        "vision_config": {**_EYES, "model_type": "pixtral", "head_dim": 16},
    },
    "Llama4": {
        "text_config": {**_TINY, **_CHUNKED},
        "vision_config": {**_EYES, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "InternVL": {"text_config": {**_TINY, "model_type": "qwen2"}, "vision_config": _EYES},
    "Qwen3VL": {
        "text_config": {**_TINY, "head_dim": 16, "rope_parameters": _AXES},
        "vision_config": {**_QWEN_EYES, "deepstack_visual_indexes": [0]},
    },
    "Qwen3_5": {"text_config": {**_TINY, **_LINEAR}, "vision_config": _QWEN_EYES},
    "Qwen2Audio": {
        "text_config": {**_TINY, "model_type": "qwen2"},
        "audio_config": {**_EARS, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
    },
}
"""Families that also see or hear, served for text."""

_LONG_ROPE: dict[str, Any] = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "short_mscale": 1.0,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 64,
    },
}
BY_LENGTH: dict[str, dict[str, Any]] = {
    "Phi3": _LONG_ROPE,
    "Llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}
    | {"max_position_embeddings": 64},
}
"""Families whose rotary embeddings transformers chooses by a request's length: another for more than 64 tokens."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "PaliGemma": (
        {
            "text_config": {**_TINY, "model_type": "gemma", "head_dim": 16},
            "vision_config": {**_EYES, "model_type": "siglip_vision_model"},
        },
        "attention that is not causal",
    ),
    "RecurrentGemma": ({"lru_width": 64}, "layers"),
    "Zaya": ({"head_dim": 16, "num_experts": 4, "router_hidden_size": 16}, "keeps a state"),
    "Bloom": ({"n_layer": 3, "n_head": 4}, "attention interface"),
    "DiffLlama": ({}, "a layer that attends several times in a pass"),
    "Doge": ({}, "a mask of the model's own"),
    "Falcon": ({}, "attention interface"),
    "GPTJ": ({"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8}, "attention interface"),
    "Mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 3}, "attention interface"),
    "Bart": (
        {"d_model": 64, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "encoder_layers": 1},
        "computed otherwise alone than behind others",  # it counts positions by itself
    ),
    "Phimoe": (_LONG_ROPE | {"num_local_experts": 4}, "depends on the longest request"),
}
"""Families that cannot be served, with the words that the refusal has to hold."""


def random_model(auto: Any, config: Any) -> Any:
    """A model with weights far from what training starts with: norms and biases matter, and logits are not flat."""
    generator = torch.Generator().manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        spread, middle = (0.2, 0.0) if parameter.dim() > 1 else (0.3, 0.7)
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + middle
    return model


def write_checkpoint(family: str, options: dict[str, Any], folder: Path) -> PreTrainedModel:
    """A random model of a family, saved to a folder; returns transformers' model in float32."""
    config = getattr(transformers, f"{family}Config")(**{**_TINY, **options})
    sees = hasattr(config, "vision_config") or hasattr(config, "audio_config")
    auto: Any = AutoModelForMultimodalLM if sees else AutoModelForCausalLM
    random_model(auto, config).save_pretrained(folder)
    # Eager: some versions of transformers' faster attentions leave soft-capping out.
    loaded: Any = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model: PreTrainedModel = loaded.eval()
    return model
