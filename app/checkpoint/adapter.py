"""Reads a folder with a low-rank adapter (LoRA, Hu et al., 2021) as Hugging Face's PEFT writes it."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_IRRELEVANT = {
    "auto_mapping", "base_model_class", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
}  # fmt: skip
"""Keys about training, or about which layers have an adapter: the tensors tell that. PEFT always writes megatron_core,
which says something only beside a megatron_config."""
_FIRST_WEIGHTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights with which the training has left the model's own weights as they are."""


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says."""

    path: Path
    weights: Path
    rank: int
    alpha: float
    by_root: bool
    """Whether the scale is alpha / sqrt(rank) instead of alpha / rank (rsLoRA, Kalajdzievski, 2023)."""
    ranks: dict[str, int]
    """Of some layers, by a regular expression for the ends of their names."""
    alphas: dict[str, float]

    def rank_of(self, layer: str) -> int:
        """The rank of a layer's matrices, by its name in transformers' model."""
        return int(_of_layer(self.ranks, layer, self.rank))

    def scale_of(self, layer: str) -> float:
        """What the product of a layer's matrices is multiplied by."""
        rank = self.rank_of(layer)
        return float(_of_layer(self.alphas, layer, self.alpha) / (rank**0.5 if self.by_root else rank))

    @property
    def largest_rank(self) -> int:
        """Of all layers."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank


def _of_layer(pattern: dict[str, Any], layer: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def read_adapter(folder: Path) -> AdapterConfig:
    """Read an adapter's configuration. ModelError names what is missing, makes no sense or is not supported."""
    file, weights = folder / _CONFIG, folder / _WEIGHTS
    for needed in (file, weights):
        if not needed.is_file():
            raise ModelError(f"{folder} is no adapter: it has no {needed.name}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        _refuse_unsupported(config, file)
        read = AdapterConfig(
            path=folder,
            weights=weights,
            rank=_rank(config.pop("r")),
            alpha=_alpha(config.pop("lora_alpha")),
            by_root=bool(config.pop("use_rslora", False)),
            ranks={str(key): _rank(value) for key, value in (config.pop("rank_pattern", None) or {}).items()},
            alphas={str(key): _alpha(value) for key, value in (config.pop("alpha_pattern", None) or {}).items()},
        )
        for key in (*read.ranks, *read.alphas):
            re.compile(key)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, re.error) as error:
        raise ModelError(f"{file}: {type(error).__name__}: {error}") from None
    if unknown := [key for key, value in config.items() if value and key not in _IRRELEVANT]:
        raise ModelError(f"{file}: {', '.join(unknown)} is not supported")
    return read


def _rank(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value} is no rank")
    return value


def _alpha(value: Any) -> float:
    if not math.isfinite(alpha := float(value)):
        raise ValueError(f"{value} is no alpha")
    return alpha


def _refuse_unsupported(config: dict[str, Any], file: Path) -> None:
    """Take out the keys that have to have some value, and ModelError for another one."""
    allowed: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "task_type": (None, "CAUSAL_LM"),
        "bias": ("none", None),
        "init_lora_weights": _FIRST_WEIGHTS,
    }
    for key, values in allowed.items():
        value = config.pop(key, values[0])
        if value not in values:
            raise ModelError(f"{file}: {key} {value} is not supported")
