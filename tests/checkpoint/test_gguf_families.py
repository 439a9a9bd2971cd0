"""The model in a GGUF file of a family is the one that was written into it in llama.cpp's form."""

import math
import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from app.checkpoint.convert import convert
from app.checkpoint.gguf import families
from app.checkpoint.gguf.file import GgufFile
from tests.checkpoint.conftest import add_keys, add_tokenizer
from tests.checkpoint.test_gguf_config import SIZES, default, difference
from tests.models.families import RECURRENT, random_model

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 32.0, "original_max_position_embeddings": 16}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 16}
EXPERTS_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
                "attention.key_length": 16, "attention.value_length": 16}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
          "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
          "n_shared_experts": 1, "moe_intermediate_size": 16}  # fmt: skip
LATENT_KEYS = {"attention.q_lora_rank": 16, "attention.kv_lora_rank": 16, "rope.dimension_count": 8, "expert_count": 4,
               "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 16,
               "leading_dense_block_count": 1}  # fmt: skip

GEMMA_4: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16,
    "global_head_dim": 32, "sliding_window": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": default(),
    },
}  # fmt: skip
GEMMA_4_KEYS = {
    "block_count": 4, "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True, False],
    "attention.key_length": 32, "attention.value_length": 32, "attention.key_length_swa": 16,
    "attention.value_length_swa": 16, "rope.dimension_count": 32, "rope.dimension_count_swa": 16,
    "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
}  # fmt: skip
MULTIPLIERS: dict[str, Any] = {
    "attention_in_multiplier": 0.9, "key_multiplier": 0.8, "attention_out_multiplier": 1.1, "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.7, "mlp_multipliers": [0.9, 1.3], "lm_head_multiplier": 0.6, "embedding_multiplier": 1.5,
    "ssm_multipliers": [0.9, 1.1, 1.2, 0.8, 1.3],
}  # fmt: skip
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 2}
MAMBA_2_KEYS = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4,
                "ssm.inner_size": 128}  # fmt: skip
MAMBA_KEYS = {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 4, "ssm.inner_size": 128}
NO_ATTENTION = {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None,
                "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
LAYER_NORM_KEYS = {"attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": None}
GRANITE = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 4.0}
GRANITE_KEYS = {"attention.scale": 0.3, "embedding_scale": 3.0, "residual_scale": 0.7, "logit_scale": 4.0}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}, {}),
    "qwen2moe": (
        "Qwen2Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 32},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
         "expert_shared_feed_forward_length": 32},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}, {"attention.key_length": 16, "attention.value_length": 16}),
    "qwen2vl": ("Qwen2", {}, {"rope.dimension_sections": [2, 3, 3, 0]}),
    "qwen3vl": (
        "Qwen3",
        {"head_dim": 16},
        {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_sections": [2, 3, 3, 0],
         "n_deepstack_layers": 1},
    ),
    "qwen3vlmoe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "norm_topk_prob": True},
        EXPERTS_KEYS | {"rope.dimension_sections": [2, 3, 3, 0], "n_deepstack_layers": 1},
    ),
    "llama": ("Llama", {}, {}),
    "internlm2": ("Llama", {}, {}),
    "seed_oss": ("SeedOss", {"head_dim": 16}, {}),
    "gemma": ("Gemma", {"head_dim": 16}, {"attention.key_length": 16, "attention.value_length": 16}),
    "phi3": ("Phi3", {"sliding_window": 8}, {"attention.sliding_window": 8, "rope.dimension_count": 16}),
    "smollm3": (
        "SmolLM3",
        {"num_hidden_layers": 4, "rope_parameters": default(2e6)},
        {"block_count": 4, "rope.freq_base": 2e6},
    ),
    "olmo2": ("Olmo2", {}, {}),
    "granite": ("Granite", GRANITE, GRANITE_KEYS),
    "granite, the fourth": (
        "GraniteMoeHybrid",
        GRANITE | MAMBA_2 | {"layer_types": ["attention"] * 2, "position_embedding_type": "rope",
                             "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96},
        GRANITE_KEYS | MAMBA_2_KEYS | {"expert_count": 0, "expert_used_count": 0, "rope.scaling.finetuned": True,
                                       "expert_shared_feed_forward_length": 96, "rope.dimension_count": 16},
    ),
    "granitemoe": (
        "GraniteMoe",
        GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2},
        GRANITE_KEYS | {"expert_count": 4, "expert_used_count": 2},
    ),
    "granitemoe, shared": (
        "GraniteMoeShared",
        GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
        GRANITE_KEYS | {"expert_count": 4, "expert_used_count": 2, "expert_shared_feed_forward_length": 32},
    ),
    "granitehybrid": (
        "GraniteMoeHybrid",
        GRANITE | MAMBA_2 | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
                             "shared_intermediate_size": 32},
        GRANITE_KEYS | MAMBA_2_KEYS | {"expert_count": 4, "expert_used_count": 2, "attention.head_count_kv": [0, 2],
                                       "expert_shared_feed_forward_length": 32, "rope.scaling.finetuned": False},
    ),
    "granitehybrid, dense": (
        "GraniteMoeHybrid",
        GRANITE | MAMBA_2 | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
                             "shared_intermediate_size": 96, "position_embedding_type": "rope"},
        GRANITE_KEYS | MAMBA_2_KEYS | {"expert_count": 0, "attention.head_count_kv": [0, 2],
                                       "expert_shared_feed_forward_length": 96, "rope.scaling.finetuned": True},
    ),
    "falcon-h1": (
        "FalconH1",
        MAMBA_2 | MULTIPLIERS | {"mamba_d_ssm": 96, "mamba_d_head": 24, "mamba_rms_norm": True, "head_dim": 16,
                                 "mamba_norm_before_gate": False},
        MAMBA_2_KEYS | {"ssm.inner_size": 96, "attention.key_length": 16, "attention.value_length": 16},
    ),
    "jamba": (
        "Jamba",
        {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4},
        MAMBA_KEYS | {"block_count": 4, "attention.head_count_kv": [0, 2, 0, 0], "expert_count": 4,
                      "expert_used_count": 2},
    ),
    "mamba": ("Mamba", {"state_size": 8, "intermediate_size": 128}, MAMBA_KEYS | NO_ATTENTION),
    "mamba, Falcon's": (
        "FalconMamba",
        {"state_size": 8, "intermediate_size": 128, "mixer_rms_eps": 1e-5},
        MAMBA_KEYS | NO_ATTENTION | {"ssm.dt_b_c_rms": True},
    ),
    "mamba2": (
        "Mamba2",
        {"state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 2, "chunk_size": 16},
        MAMBA_2_KEYS | NO_ATTENTION,
    ),
    "lfm2": (
        "Lfm2",
        {"block_ff_dim": 96, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"],
         "norm_eps": 1e-6, "rope_parameters": default(1e6)},
        {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e6},
    ),
    "lfm2moe": (
        "Lfm2Moe",
        {"layer_types": ["conv", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2, "norm_eps": 1e-6,
         "moe_intermediate_size": 32, "num_dense_layers": 1, "rope_parameters": default(1e6)},
        {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e6, "expert_count": 4,
         "expert_used_count": 2, "expert_feed_forward_length": 32, "leading_dense_block_count": 1,
         "expert_gating_func": 2},
    ),
    "apertus": ("Apertus", {"rope_parameters": default()}, {"rope.dimension_count": 16}),
    "hunyuan-dense": (
        "HunYuanDenseV1",
        {"head_dim": 16, "rope_parameters": default()},
        {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "attention.key_length": 16,
         "attention.value_length": 16},
    ),
    "hunyuan-moe": (
        "HunYuanMoEV1",
        {"head_dim": 16, "num_experts": 4, "moe_topk": 2, "rope_parameters": default()},
        EXPERTS_KEYS | {"expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 96,
                        "expert_shared_count": 1},
    ),
    "minimax-m2": (
        "MiniMaxM2",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "rope_parameters": default() | {"partial_rotary_factor": 0.5}},
        EXPERTS_KEYS | {"expert_feed_forward_length": 96, "rope.dimension_count": 8, "expert_gating_func": 2},
    ),
    "exaone-moe": (
        "ExaoneMoe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
         "num_shared_experts": 2, "sliding_window": 8, "num_hidden_layers": 4, "routed_scaling_factor": 1.5},
        EXPERTS_KEYS | {"block_count": 5, "attention.sliding_window": 8, "rope.scaling.type": "none",
                        "attention.sliding_window_pattern": [True, True, True, False, False],
                        "expert_shared_count": 2, "expert_shared_feed_forward_length": 64, "expert_group_count": 2,
                        "expert_group_used_count": 1, "expert_weights_scale": 1.5, "expert_weights_norm": True,
                        "leading_dense_block_count": 1, "nextn_predict_layers": 1, "expert_gating_func": 2},
    ),
    "ernie4_5-moe": (
        "Ernie4_5_Moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "num_hidden_layers": 4,
         "moe_layer_interval": 2, "rope_parameters": default()},
        {"block_count": 4, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
         "expert_shared_count": 2, "expert_shared_feed_forward_length": 48, "interleave_moe_layer_step": 2,
         "leading_dense_block_count": 1},
    ),
    "glm4": (
        "Glm4",
        {"attention_bias": True, "head_dim": 16,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope.dimension_count": 8},
    ),
    "command-r": (
        "Cohere",
        {"logit_scale": 0.5, "layer_norm_eps": 1e-5, "use_qk_norm": True, "rope_parameters": default()},
        LAYER_NORM_KEYS | {"logit_scale": 0.5},
    ),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "attn_logit_softcapping": 20.0},
        {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8,
         "attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
        {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8, "block_count": 7,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6},
    ),
    "gemma3n": (
        "Gemma3nText",
        {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16,
         "sliding_window": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
         "vocab_size_per_layer_input": 268, "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
         "rope_parameters": {"full_attention": default(1e6), "sliding_attention": default()}},
        {"block_count": 4, "attention.sliding_window": 8, "attention.key_length": 16, "attention.value_length": 16,
         "attention.sliding_window_pattern": [True, False, True, False], "attention.shared_kv_layers": 2,
         "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "embedding_length_per_layer_input": 8,
         "altup.num_inputs": 4, "altup.active_idx": 0,
         "activation_sparsity_scale": [NormalDist().inv_cdf(0.9), -math.inf, -math.inf, -math.inf]},
    ),
    "gemma4": (
        "Gemma4Text",
        GEMMA_4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8,
                   "vocab_size_per_layer_input": 268, "final_logit_softcapping": 30.0},
        GEMMA_4_KEYS | {"attention.shared_kv_layers": 2, "feed_forward_length": [96, 96, 192, 192],
                        "embedding_length_per_layer_input": 8, "final_logit_softcapping": 30.0},
    ),
    "gemma4, with experts": (
        "Gemma4Text",
        GEMMA_4 | {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                   "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
        GEMMA_4_KEYS | {"attention.shared_kv_layers": 0, "attention.head_count_kv": [2, 1, 2, 1], "expert_count": 4,
                        "expert_used_count": 2, "expert_feed_forward_length": 32,
                        "embedding_length_per_layer_input": 0},
    ),
    "mistral3": (
        "Ministral3",
        {"head_dim": 16, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
        YARN_KEYS | {"rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1},
    ),
    "mistral3, small": ("Mistral", {"head_dim": 16, "sliding_window": None}, {}),
    "exaone": ("Llama", {}, {"attention.layer_norm_epsilon": 1e-6, "attention.layer_norm_rms_epsilon": None}),
    "minicpm": (
        "Granite",
        GRANITE | {"attention_multiplier": 0.25},
        {"embedding_scale": 3.0, "residual_scale": 0.7, "logit_scale": 4.0},
    ),
    "olmo": (
        "Olmo",
        {"clip_qkv": 0.5, "rope_parameters": default()},
        LAYER_NORM_KEYS | {"attention.clamp_kqv": 0.5},
    ),
    "phi2": (
        "Phi",
        {"layer_norm_eps": 1e-5, "rope_parameters": default() | {"partial_rotary_factor": 0.5}},
        LAYER_NORM_KEYS | {"rope.dimension_count": 8},
    ),
    "starcoder2": (
        "Starcoder2",
        {"norm_epsilon": 1e-5, "rope_parameters": default(), "sliding_window": None},
        LAYER_NORM_KEYS | {"rope.freq_base": 1e4},
    ),
    "nemotron": (
        "Nemotron",
        {"norm_eps": 1e-5, "rope_parameters": default() | {"partial_rotary_factor": 0.5}},
        {"attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 8,
         "rope.scaling.type": "none"},
    ),
    "stablelm": (
        "StableLm",
        {"layer_norm_eps": 1e-5, "use_qkv_bias": True, "use_parallel_residual": True,
         "rope_parameters": default() | {"partial_rotary_factor": 0.25}},
        LAYER_NORM_KEYS | {"rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "stablelm, one after the other": (
        "StableLm",
        {"layer_norm_eps": 1e-5, "rope_parameters": default()},
        LAYER_NORM_KEYS | {"rope.dimension_count": 16, "use_parallel_residual": True},
    ),
    "exaone4": (
        "Exaone4",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False]},
    ),
    "cohere2": (
        "Cohere2",
        {"sliding_window": 8, "num_hidden_layers": 5, "logit_scale": 0.3, "layer_norm_eps": 1e-5},
        {"attention.sliding_window": 8, "block_count": 5, "logit_scale": 0.3, "attention.layer_norm_epsilon": 1e-5,
         "attention.layer_norm_rms_epsilon": None},
    ),
    "llama4": (
        "Llama4Text",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2,
         "num_hidden_layers": 4, "intermediate_size": 48, "intermediate_size_mlp": 96},
        {"expert_count": 4, "expert_used_count": 2, "interleave_moe_layer_step": 2, "block_count": 4,
         "expert_feed_forward_length": 48, "rope.freq_base": 5e5},
    ),
    "deepseek2": (
        "DeepseekV3",
        LATENT | {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5,
                  "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
        LATENT_KEYS | YARN_KEYS | {"expert_group_count": 2, "expert_group_used_count": 1, "expert_weights_scale": 1.5,
                                   "expert_weights_norm": True, "expert_gating_func": 2,
                                   "rope.scaling.yarn_log_multiplier": 0.07, "attention.head_count_kv": 1,
                                   "attention.key_length": 24, "attention.value_length": 16,
                                   "attention.key_length_mla": 24, "attention.value_length_mla": 12},
    ),
    "deepseek2, as it was": (
        "DeepseekV2",
        LATENT | {"q_lora_rank": None},
        LATENT_KEYS | {"attention.q_lora_rank": None, "attention.head_count_kv": 4, "attention.key_length": 24,
                       "attention.value_length": 12, "expert_weights_scale": 1.0},
    ),
    "qwen3next": (
        "Qwen3Next",
        {**RECURRENT["Qwen3Next"], "num_hidden_layers": 4, "layer_types": None,
         "rope_parameters": default() | {"partial_rotary_factor": 0.25}},
        EXPERTS_KEYS | {"block_count": 4, "expert_shared_feed_forward_length": 32, "ssm.conv_kernel": 4,
                        "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64,
                        "rope.dimension_count": 4},
    ),
    "qwen35moe": (
        "Qwen3_5MoeText",
        {**RECURRENT["Qwen3_5MoeText"], "num_hidden_layers": 4, "layer_types": None,
         "rope_parameters": default() | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
        EXPERTS_KEYS | {"block_count": 4, "expert_shared_feed_forward_length": 32, "ssm.conv_kernel": 4,
                        "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64,
                        "rope.dimension_count": 8, "rope.dimension_sections": [2, 1, 1, 0],
                        "feed_forward_length": None, "attention.recurrent_layers": [True, True, True, False]},
    ),
    "qwen35": (
        "Qwen3_5Text",
        {**RECURRENT["Qwen3_5Text"], "num_hidden_layers": 4, "layer_types": None,
         "rope_parameters": default() | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
        {"attention.key_length": 16, "attention.value_length": 16, "block_count": 4, "ssm.conv_kernel": 4,
         "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64,
         "rope.dimension_count": 8, "rope.dimension_sections": [2, 1, 1, 0]},
    ),
    "dots1": (
        "Dots1",
        {"head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
         "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True},
        EXPERTS_KEYS | {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_norm": True},
    ),
    "arcee": ("Arcee", {"head_dim": 16}, {}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 16, "rope_parameters": default()}, {}),
    "gpt-oss": (
        "GptOss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32,
         "sliding_window": 8, "rope_parameters": YARN | {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}},
        EXPERTS_KEYS | YARN_KEYS | {"attention.sliding_window": 8},
    ),
    "olmo2, the third": (
        "Olmo3",
        {"sliding_window": 8, "num_hidden_layers": 5,
         "rope_parameters": {"full_attention": YARN, "sliding_attention": default()}},
        YARN_KEYS | {"attention.sliding_window": 8, "block_count": 5},
    ),
    "glm4moe": (
        "Glm4Moe",
        {"head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 1.5,
         "rope_parameters": default() | {"partial_rotary_factor": 0.5}},
        EXPERTS_KEYS | {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 1.5,
                        "expert_weights_norm": True, "rope.dimension_count": 8},
    ),
    "nemotron_h": (
        "NemotronH",
        {**RECURRENT["NemotronH"], "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "n_groups": 2},
        {"attention.key_length": 16, "attention.value_length": 16, "block_count": 4,
         "feed_forward_length": [0, 0, 96, 0], "attention.head_count_kv": [0, 2, 0, 0], "ssm.conv_kernel": 4,
         "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 128,
         "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "nemotron_h_moe": (
        "NemotronH",
        {**RECURRENT["NemotronH"], "layers_block_type": ["mamba", "attention", "moe", "mamba"], "n_groups": 2,
         "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_latent_size": 16,
         "moe_shared_expert_intermediate_size": 40},
        EXPERTS_KEYS | {"block_count": 5, "feed_forward_length": [0, 0, 32, 0, 32], "expert_shared_count": 1,
                        "attention.head_count_kv": [0, 2, 0, 0, 2], "ssm.conv_kernel": 4, "ssm.state_size": 16,
                        "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 128, "moe_latent_size": 16,
                        "expert_shared_feed_forward_length": 40, "expert_weights_norm": True,
                        "nextn_predict_layers": 1, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
}  # fmt: skip
"""llama.cpp's name, to transformers' configuration, what is special in it, and the same in a file's words."""


PERMUTED = {
    "arcee",
    "smollm3",
    "granite",
    "granitemoe",
    "granitehybrid",
    "mistral3",
    "internlm2",
    "llama",
    "minicpm",
    "olmo",
}
"""Families that rotate neighbouring dimensions in llama.cpp, and halves in transformers."""


ADDED_TO_ONE = {"gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe"}
"""Families whose norms' weights llama.cpp has added to one."""
GEMMA_4_SCALES = {
    "scale": "ffn_gate_inp.scale",
    "per_expert_scale": "ffn_down_exps.scale",
    "layer_scalar": "layer_output_scale.weight",
}
VALUE_HEADS = {
    "in_proj_qkv.weight": "attn_qkv.weight",
    "in_proj_z.weight": "attn_gate.weight",
    "in_proj_b.weight": "ssm_beta.weight",
    "in_proj_a.weight": "ssm_alpha.weight",
    "conv1d.weight": "ssm_conv1d.weight",
    "A_log": "ssm_a",
    "dt_bias": "ssm_dt.bias",
    "out_proj.weight": "ssm_out.weight",
}


def in_turns(weight: Any, name: str) -> Any:
    """The rows, or inputs, of four heads of values. Two belong to each head of keys, and these alternate."""
    if name == "ssm_out.weight":
        return in_turns(weight.T, "").T
    if name == "ssm_a":
        return in_turns(-np.exp(weight), "")
    rows, before = weight.squeeze(), 64 if "qkv" in name or "conv" in name else 0
    a, b, c, d = np.split(rows[before:], 4)
    return np.concatenate([rows[:before], a, c, b, d])


def stored(family: str, name: str, weight: Any, config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes for a tensor, by the end of the name if that is not in the library's table."""
    end = name.rpartition("layers.")[2].partition(".")[2]
    heads = {"q_proj.weight": 4, "k_proj.weight": 2}.get(end.rpartition("attn.")[2])
    if family in PERMUTED and heads:
        return {"": weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)}
    if end.endswith(("A_log", "dt_bias")) and not family.startswith("qwen35"):
        return {"ssm_a": np.atleast_2d(-np.exp(weight.T)).T} if end.endswith("A_log") else {"ssm_dt.bias": weight}
    if end.endswith((".e_score_correction_bias", ".expert_bias")):
        return {"exp_probs_b.bias": weight.squeeze()}
    if end.endswith(".router.weight") and family.startswith("granite"):
        return {"ffn_gate_inp.weight": weight}
    if "shared_mlp." in end and family.startswith("granite"):
        parts = dict(zip(("gate", "up"), np.split(weight, 2), strict=True)) if "input" in end else {"down": weight}
        return {f"ffn_{part}{'_shexp' if config.num_local_experts else ''}.weight": parts[part] for part in parts}
    if family == "falcon-h1":
        weight = multiplied(name, weight, config)
    if family in ("llama4", "gpt-oss") and ".experts." in end and weight.ndim == 3:
        weight = weight.swapaxes(1, 2)
    if end.endswith("correct_output_scale"):
        return {"altup_correct_scale.weight": weight}
    if family == "gemma4":
        if end.endswith("experts.gate_up_proj"):
            return {"ffn_gate_up_exps.weight": weight}
        if named := GEMMA_4_SCALES.get(end.rpartition("router.")[2]):
            return {named: weight}
    if family == "gpt-oss" and end.endswith("sinks"):
        return {"attn_sinks.weight": weight}
    if family == "gpt-oss" and ".experts." in end:
        kind = "bias" if end.endswith("_bias") else "weight"
        taken = {"gate": weight[:, ::2], "up": weight[:, 1::2]} if "gate_up" in end else {"down": weight}
        return {f"ffn_{name}_exps.{kind}": part for name, part in taken.items()}
    if end.endswith("experts.gate_up_proj"):
        return dict(zip(("ffn_gate_exps.weight", "ffn_up_exps.weight"), np.split(weight, 2, axis=1), strict=True))
    if ".experts." in end:
        return {f"ffn_{end.rpartition('.')[2].removesuffix('_proj')}_exps.weight": weight}
    if family == "deepseek2" and end.endswith("kv_b_proj.weight"):
        keys, values = np.split(weight.reshape(4, 28, 16), [16], axis=1)
        return {"attn_k_b.weight": keys.swapaxes(1, 2), "attn_v_b.weight": values}
    if end.endswith("in_proj_qkvz.weight"):
        of_heads = np.split(weight.reshape(2, 96, 64), [16, 32, 64], axis=1)
        q, k, v, z = (part.reshape(-1, 64) for part in of_heads)
        return {"attn_qkv.weight": np.concatenate([q, k, v]), "attn_gate.weight": z}
    if end.endswith(("mixer.norm.weight", "mamba.norm.weight")):
        return {"ssm_norm.weight": weight.reshape(2, -1)}
    if end.endswith(".D") and weight.size == 4:
        return {"ssm_d": weight[:, None]}
    if family.startswith("qwen35") and (tiled := VALUE_HEADS.get(end.rpartition("linear_attn.")[2])):
        return {tiled: in_turns(weight, tiled)}
    adds_one = end.endswith("norm.weight") and "linear_attn" not in end and family in ADDED_TO_ONE
    return {"": weight.squeeze() + adds_one}


def multiplied(name: str, weight: Any, config: Any) -> Any:
    """A tensor of Falcon-H1 with what its results, or what it is given, are multiplied by."""
    of_ssm = np.repeat(config.ssm_multipliers, [96, 96, 32, 32, 4])[:, None] * config.ssm_in_multiplier
    factors = {
        "down_proj": config.mlp_multipliers[1],
        "gate_proj": config.mlp_multipliers[0],
        "k_proj": config.key_multiplier * config.attention_in_multiplier,
        "q_proj": config.attention_in_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "in_proj": of_ssm,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    return (weight * factors.get(name.split(".")[-2], 1.0)).astype(np.float32)


def write_family(path: Path, case: str) -> Any:
    """A random model of a family in a GGUF file; returns transformers' model."""
    name, options, keys = FAMILIES[case]
    family = case.partition(",")[0]
    writer = gguf.GGUFWriter(path, family)
    said = {key: value for key, value in (SIZES | keys).items() if value is not None}
    add_keys(writer, {f"{family}.{key}": value for key, value in said.items()})
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": add_tokenizer(writer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "rms_norm_eps": 1e-6, **options}
    )  # fmt: skip
    model = random_model(AutoModelForCausalLM, config).eval()
    arch = next(arch for arch, written in gguf.MODEL_ARCH_NAMES.items() if written == family)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    numbers: dict[str, list[float]] = {}
    stacked: dict[str, list[Any]] = {}
    saved = model.state_dict().keys()
    biases = {path: buffer for path, buffer in model.named_buffers() if path in saved}
    for path_of_one, tensor in {**dict(model.named_parameters()), **biases}.items():
        tensor = tensor.detach()
        if path_of_one.endswith(("A_log", "dt_bias")):
            tensor.abs_().div_(2)
        elif path_of_one.endswith("layer_scalar"):
            tensor.fill_(0.7)
        elif path_of_one.endswith(("correction_bias", "expert_bias")):
            tensor.copy_(torch.linspace(0, 1, tensor.numel()).view_as(tensor))
        layer = path_of_one.partition("layers.")[2].partition(".")[0]
        if "projections." in path_of_one:  # of which all are one in the file
            stacked.setdefault(f"altup_{'unembd_' * ('unembed' in path_of_one)}proj.weight", []).append(tensor.numpy())
            continue
        if ".act_fn." in path_of_one:
            numbers.setdefault(f"xielu.{path_of_one.rpartition('.')[2]}", []).append(float(tensor))
            continue
        for end, part in stored(family, path_of_one, tensor.numpy(), config).items():
            spellings = (path_of_one, path_of_one.replace("model.", "backbone.", 1))
            known = [names.get_name(spelling, try_suffixes=(".weight", ".bias")) for spelling in spellings]
            writer.add_tensor(f"blk.{layer}.{end}" if end else next(filter(None, known)), np.ascontiguousarray(part))
    add_keys(writer, numbers)
    for name_of_all, parts in stacked.items():
        writer.add_tensor(name_of_all, np.stack(parts))
    if family == "gemma4":
        writer.add_tensor("rope_freqs.weight", np.array([1.0] * 4 + [1e30] * 12, np.float32))
    if keys.get("attention.shared_kv_layers"):  # what layers have and do not use
        writer.add_tensor("blk.3.attn_k.weight", np.ones((64, 64), np.float32))
    if "nextn_predict_layers" in keys:  # a draft head, which is left out
        writer.add_tensor(f"blk.{config.num_hidden_layers}.nextn.eh_proj.weight", np.ones((64, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_family_is_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    model = write_family(tmp_path / "model.gguf", family)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    model.save_pretrained(tmp_path / "oracle")
    sums_otherwise = "linear_num_key_heads" in FAMILIES[family][1]  # the gated delta rule of random decays, in float32
    assert difference(tmp_path / "converted", tmp_path / "oracle") < (3e-4 if sums_otherwise else 2e-5)


def test_a_rotation_that_a_class_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, keys = FAMILIES["hunyuan-dense"]
    monkeypatch.setitem(FAMILIES, "hunyuan-dense", (name, options, keys | {"rope.dimension_count": 8}))
    write_family(tmp_path / "model.gguf", "hunyuan-dense")
    with pytest.raises(ValueError, match=r"rope\.dimension_count: hunyuan_v1_dense models here rotate 16 dimensions"):
        convert(tmp_path / "model.gguf", tmp_path / "converted")


def test_all_families_are_tried() -> None:
    with_experts = {"olmoe", "qwen3moe"}  # of which tests/models/test_gguf.py writes files
    tried = {case.partition(",")[0] for case in FAMILIES} | with_experts
    assert tried - families.FAMILIES.keys() == {"starcoder2"}  # which transformers reads
    assert families.FAMILIES.keys() <= tried


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    """As llama-gguf-split cuts it: the metadata in the first part, offsets from the beginning of each part's data."""
    whole = write_family(tmp_path / "whole.gguf", "olmo2")
    read = gguf.GGUFReader(tmp_path / "whole.gguf")
    cuts = np.array_split(np.arange(len(read.tensors)), 3)
    parts = [tmp_path / f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (path, cut) in enumerate(zip(parts, cuts, strict=True)):
        writer = gguf.GGUFWriter(path, "olmo2")
        if number == 0:
            for name, value in read.fields.items():
                if not name.startswith(("GGUF.", "general.architecture")):
                    kinds = value.types
                    writer.add_key_value(name, value.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(read.tensors))
        for index in cut:
            writer.add_tensor(read.tensors[index].name, read.tensors[index].data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole.save_pretrained(tmp_path / "oracle")
    convert(parts[1], tmp_path / "converted")
    for oracle in ("oracle", "converted"):
        assert difference(tmp_path / "converted", tmp_path / oracle) < 3e-4
    shutil.copy(parts[0], tmp_path / "alone.gguf")
    with pytest.raises(ValueError, match=r"split\.count"):
        GgufFile(tmp_path / "alone.gguf")
    parts[2].unlink()
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.gguf is missing"):
        GgufFile(parts[0])
