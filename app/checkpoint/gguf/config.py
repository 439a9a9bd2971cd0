"""From a GGUF file's metadata to transformers' config.json."""

from typing import Any

from .families import FAMILIES, Family
from .file import GgufFile
from .rope import rope_parameters

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


def model_config(file: GgufFile) -> dict[str, Any] | None:
    """config.json of the model in a file; None for a family that is not in `FAMILIES`.

    Raises ValueError for what the file says and the family cannot do.
    """
    if (family := FAMILIES.get(file.architecture)) is None:
        return None
    config = _sizes(file, family)
    config |= {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        # Families have defaults, which may be beyond the vocabulary. The tokenizer says which tokens these are.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if file.of_model("vocab_size", config["vocab_size"]) != config["vocab_size"]:
        raise ValueError(f"vocab_size is not that of the embeddings, which have {config['vocab_size']} tokens")
    if "head_dim" in config:
        config["rope_parameters"] = rope_parameters(file, config)
    for key, (name, default) in family.fields.items():
        if (value := file.of_model(key, default)) is not None:
            config[name] = value
    config |= {name: file.has_in_layers(tensor) for name, tensor in family.has.items()}
    config |= family.own(file, config)
    if not file.has_read("expert_count") and file.of_model("expert_count", 0):
        raise ValueError(f"experts of the family {file.architecture} are not supported")
    return config


def _sizes(file: GgufFile, family: Family) -> dict[str, Any]:
    """Whole numbers, and the norms' epsilon. ValueError names one that is none."""
    config: dict[str, Any] = {field: file.of_model(key) for key, field in _SIZES.items() if key not in family.left_out}
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    drafting = file.of_model("nextn_predict_layers", 0)
    if odd := [field for field, value in config.items() if type(value) not in (int, float) or value <= 0]:
        raise ValueError(f"{odd[0]} is {config[odd[0]]!r}")
    config["num_hidden_layers"] -= drafting
    file.leave_out([f"blk.{config['num_hidden_layers'] + layer}." for layer in range(drafting)])
    if "attention.head_count" in family.left_out:  # there is no attention
        return config
    return config | {"head_dim": _head_dim(file, family, config)}


def _head_dim(file: GgufFile, family: Family, config: dict[str, Any]) -> int:
    """The dimensions of a head: with latent attention, those that are rotated."""
    if "attention.key_length" in family.left_out:
        head_dim, key = file.of_model("rope.dimension_count"), "rope.dimension_count"
    else:
        key = "attention.key_length"
        head_dim = file.of_model(key, config["hidden_size"] // config["num_attention_heads"])
        if file.of_model("attention.value_length", head_dim) != head_dim:
            raise ValueError("values of another length than keys are not supported")
    if type(head_dim) is not int or head_dim < 1:
        raise ValueError(f"{key} is {head_dim!r}")
    return head_dim


def other_config(file: GgufFile, config: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """config.json of another family: `config` is transformers' own, which was read from these keys."""
    for key in keys:
        file.of_model(key)
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        config.pop(name, None)
    if any(file.of_model(key) is not None for key in ("rope.freq_base", "rope.dimension_count")):
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        config["rope_parameters"] = rope_parameters(file, config | {"head_dim": head_dim})
    return config | {"vocab_size": vocab_size(file)}


def vocab_size(file: GgufFile) -> int:
    """How many tokens the model has embeddings for. ValueError if the tokenizer has more."""
    if "token_embd.weight" not in file.tensors:
        raise ValueError("the file lacks token_embd.weight")
    shape, tokens = file.tensors["token_embd.weight"].shape, len(file.get("tokenizer.ggml.tokens") or ())
    if len(shape) != 2 or tokens > shape[0]:
        raise ValueError(f"the tokenizer has {tokens} tokens, and token_embd.weight the shape {shape}")
    return shape[0]
