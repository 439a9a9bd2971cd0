"""Random LoRA adapters in PEFT's files, and what they make of a model of transformers."""

import copy
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

EVERYWHERE = ("",)
"""Ends of the names of all linear layers."""
_DEFAULTS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "some/model", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0, "lora_ga_config": None,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
    "peft_version": "0.19.1", "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": None,
    "target_modules": None, "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip
"""What PEFT 0.19.1 writes of a LoraConfig whose fields were not given."""


def layers_of(model: PreTrainedModel, ends: Collection[str] = EVERYWHERE) -> dict[str, nn.Linear]:
    """The linear layers whose names end so, but for the last one and those that see, by their names."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings()
        if name.endswith(tuple(ends)) and "vision" not in name
    }


def write_adapter(
    model: PreTrainedModel, folder: Path, seed: int, ends: Collection[str] = EVERYWHERE, rank: int = 4, **config: Any
) -> Path:
    """An adapter that changes what the model says, for layers whose names end so; returns its folder."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, layer in layers_of(model, ends).items():
        own = next((r for key, r in config.get("rank_pattern", {}).items() if name.endswith(key)), rank)
        for kind, shape in (("A", (own, layer.in_features)), ("B", (layer.out_features, own))):
            numbers = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
            tensors[f"base_model.model.{name}.lora_{kind}.weight"] = numbers.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {**_DEFAULTS, "r": rank, "lora_alpha": 2 * rank, "target_modules": [*ends], **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with an adapter's products added to its weights, in float32."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, result = load_file(folder / "adapter_model.safetensors"), copy.deepcopy(model)
    for name, layer in layers_of(result).items():
        key = f"base_model.model.{name}.lora_"
        if f"{key}A.weight" in tensors:
            a, b = tensors[f"{key}A.weight"].float(), tensors[f"{key}B.weight"].float()
            patterns = config.get("alpha_pattern", {})
            alpha = next((value for end, value in patterns.items() if name.endswith(end)), config["lora_alpha"])
            scale = alpha / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
            layer.weight = nn.Parameter(layer.weight.data + scale * b @ a)  # other layers may have it, too
    return result
