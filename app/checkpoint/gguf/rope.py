"""The rotary embedding that a GGUF file describes, as `rope_parameters` of transformers."""

import math
from typing import Any

from .file import GgufFile

_OTHER_THETAS = {"gemma3": 1000000.0}
_DEFAULT_THETA = 10000.0


def rope_parameters(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """`config` has `head_dim` and `max_position_embeddings`. ValueError for what is not supported."""
    default_theta = _OTHER_THETAS.get(file.architecture, _DEFAULT_THETA)
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
        return rope | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": context,
            "beta_fast": file.of_model("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": file.of_model("rope.scaling.yarn_beta_slow", 1.0),
            **_yarn_scale(file, factor, scale),
        }
    if kind not in ("linear", "none") or scale != 1.0:
        raise ValueError(f"rope.scaling.type {kind} with attn_factor {scale} is not supported")
    return rope if kind == "none" or factor == 1.0 else rope | {"rope_type": "linear", "factor": factor}


def _yarn_scale(file: GgufFile, factor: float, scale: float) -> dict[str, float]:
    """What YaRN multiplies queries and keys by, and DeepSeek's models all scores.

    `yarn_log_multiplier` is what DeepSeek calls `mscale_all_dim`, and for the family deepseek2 a tenth of it. llama.cpp
    takes their `mscale` for 1, and in that family for the same as the other.
    """
    of_file = scale * file.of_model("rope.scaling.yarn_attn_factor", 1.0)
    of_all = file.of_model("rope.scaling.yarn_log_multiplier", 0.0)
    if not of_all and file.architecture != "deepseek2":
        return {"attention_factor": of_file * (1 + 0.1 * math.log(factor))}
    if of_file != 1.0 or not of_all:
        raise ValueError(f"YaRN with yarn_log_multiplier {of_all} and attention factor {of_file} is not supported")
    if file.architecture == "deepseek2":
        return dict.fromkeys(("mscale", "mscale_all_dim"), of_all / 0.1)
    return {"mscale": 1.0, "mscale_all_dim": of_all}


def _factors(file: GgufFile) -> tuple[list[float], list[float]] | None:
    """What rotary frequencies are divided by, for long and for short texts: for Llama 3 these are the same."""
    if (same := file.numbers("rope_freqs.weight")) is not None:
        return same, same
    long, short = file.numbers("rope_factors_long.weight"), file.numbers("rope_factors_short.weight")
    return None if long is None or short is None else (long, short)
