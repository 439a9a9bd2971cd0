"""Models that transformers does not know by their names, but knows by others: they came with code of their own.

That code is never run. Such a model is read as the model that it is, with other names of fields and tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]
Take = Callable[[Any], Any]
"""Takes a part of a merged tensor, or makes another of it. It gets and returns one of torch's."""
Splits = Mapping[str, Mapping[str, Take]]
"""By a part of a tensor's name: what stands in its place in the names of several tensors, and how these are made."""


def _no_splits(_config: Config) -> Splits:
    return {}


def _nothing(_config: Config) -> Config:
    return {}


@dataclass(frozen=True, kw_only=True)
class Alias:
    """What a model is, of those that transformers knows, and how its files differ from that model's."""

    model_type: str
    architecture: str
    """transformers' names."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of config.json, by the model's own name: transformers' name."""
    assumed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that the other model has no name for, with the values that it stands for."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields, by transformers' names, that are something else in the other model where nothing is said."""
    derived: Callable[[Config], Config] = _nothing
    """Fields that follow from others, which have transformers' names by then, and may be taken out. ValueError for
    what cannot be, LookupError for what is missing."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Parts of tensors' names, and what stands in their place in transformers' names."""
    splits: Callable[[Config], Splits] = _no_splits
    """See `Splits`, for a config in transformers' words."""
    left_out: tuple[str, ...] = ()
    """Beginnings of names of tensors that generating does not need, and transformers' model does not have."""

    def config(self, raw: Config) -> Config:
        """config.json in transformers' words. ValueError names a field that says what the other model cannot do."""
        for name, values in self.assumed.items():
            if name in raw and raw[name] not in values:
                raise ValueError(f"{name} is {raw[name]!r}, which {self.model_type} cannot do")
        dropped = {"auto_map", *self.assumed, *self.fields}
        told = {name: value for name, value in raw.items() if name not in dropped}
        told = {**self.defaults, **told, **{new: raw[name] for name, new in self.fields.items() if name in raw}}
        told |= {"model_type": self.model_type, "architectures": [self.architecture]}
        return told | self.derived(told)

    @property
    def renames_tensors(self) -> bool:
        """Whether tensors have other names than transformers' model has."""
        return bool(self.names or self.left_out or self.splits is not _no_splits)

    def tensors(self, name: str, config: Config) -> Iterator[tuple[str, Take | None]]:
        """What a tensor of a checkpoint is by transformers' names, and how that is made of it, unless it is the same.

        `config` is in transformers' words.
        """
        if name.startswith(self.left_out):
            return
        for part, parts in self.splits(config).items():
            if part in name:
                yield from ((self._renamed(name.replace(part, new)), take) for new, take in parts.items())
                return
        yield self._renamed(name), None

    def _renamed(self, name: str) -> str:
        for part, new in self.names.items():
            name = name.replace(part, new)
        return name


def alias_of(raw: Config) -> Alias | None:
    """The alias of a config.json; None for a model that has none."""
    names = raw.get("architectures")
    return ALIASES.get((str(raw.get("model_type")), str(names[0]))) if isinstance(names, list) and names else None


# ---------------------------------------------------------------------- merged projections


def _in_thirds(part: str, prefix: str = ".self_attn.") -> Callable[[Config], Splits]:
    """Queries, keys and values one below the other, all of the same size."""

    def third(index: int) -> Take:
        return lambda merged: merged.unflatten(0, (3, -1))[index]

    parts = {f"{prefix}{name}_proj.": third(index) for index, name in enumerate("qkv")}
    return lambda _config: {part: parts}


def _internlm2_splits(config: Config) -> Splits:
    """For each head of keys: its heads of queries, then the keys, then the values."""
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    queries = config["num_attention_heads"] // groups

    def take(first: int, last: int) -> Take:
        return lambda merged: merged.unflatten(0, (groups, queries + 2, -1))[:, first:last].flatten(0, 2)

    cuts = {"q": (0, queries), "k": (queries, queries + 1), "v": (queries + 1, queries + 2)}
    return {".attention.wqkv.": {f".self_attn.{name}_proj.": take(*cut) for name, cut in cuts.items()}}


def _chatglm_splits(config: Config) -> Splits:
    """All queries, then all keys, then all values."""
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    cuts = {"q": slice(queries), "k": slice(queries, queries + keys), "v": slice(queries + keys, None)}

    def take(cut: slice) -> Take:
        return lambda merged: merged[cut]

    parts = {f".self_attn.{name}_proj.": take(cut) for name, cut in cuts.items()}
    return {".self_attention.query_key_value.": parts}


def _unit_rows(weight: Any) -> Any:
    return weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _baichuan2_splits(config: Config) -> Splits:
    """The rows of the last layer have length 1 when it is used, whatever their length in the file."""
    return {**_in_thirds(".self_attn.W_pack.")(config), "lm_head.": {"lm_head.": _unit_rows}}


# ---------------------------------------------------------------------- fields that follow from others


def _baichuan2(config: Config) -> Config:
    if "max_position_embeddings" not in config:
        raise ValueError("there are no max_position_embeddings: this is a Baichuan with ALiBi, which is not supported")
    return {}


def _chatglm(config: Config) -> Config:
    several = config.pop("multi_query_attention", False)
    heads, keys = config["num_attention_heads"], config.pop("multi_query_group_num", None)
    return {
        "num_key_value_heads": keys if several else heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "rope_theta": 10000.0 * config.pop("rope_ratio", 1),
        "partial_rotary_factor": 0.5,
        "pad_token_id": config.get("pad_token_id"),
    }


def _minicpm(config: Config) -> Config:
    """MiniCPM (Hu et al., 2024) scales by depth and width, as muP does."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    return {
        "embedding_multiplier": float(config.pop("scale_emb", 1)),
        "residual_multiplier": float(config.pop("scale_depth", 1)) / layers**0.5,
        "logits_scaling": config["hidden_size"] / config.pop("dim_model_base", config["hidden_size"]),
        "attention_multiplier": (config.get("head_dim") or config["hidden_size"] // heads) ** -0.5,
    }


def _qwen(config: Config) -> Config:
    """Only behind its first context does this model scale attention and stretch positions, so there it ends."""
    head_dim = config.pop("kv_channels", config["hidden_size"] // config["num_attention_heads"])
    context = min(config.pop("seq_length", 8192), config.get("max_position_embeddings", 8192))
    for name in ("use_dynamic_ntk", "use_logn_attn"):
        config.pop(name, None)
    return {
        "intermediate_size": config["intermediate_size"] // 2,
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "hidden_act": "silu",
    }


# ---------------------------------------------------------------------- the models

_LLAMA = Alias(model_type="llama", architecture="LlamaForCausalLM")
_INTERNLM = Alias(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={"bias": "attention_bias"},
    defaults={"attention_bias": True},
)
_ORION = Alias(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fields={"rms_norm_eps": "layer_norm_eps"},  # its norms are not RMS norms, for all that
    derived=lambda _config: {"partial_rotary_factor": 1.0, "use_qkv_bias": False},
    assumed={"pretraining_tp": (1,), "attention_bias": (False,)},
)
_YI = Alias(
    model_type="llama",
    architecture="LlamaForCausalLM",
    names={".ln1.": ".input_layernorm.", ".ln2.": ".post_attention_layernorm."},
)
_INTERNLM2 = Alias(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={"bias": "attention_bias"},
    defaults={"attention_bias": True},
    names={
        "tok_embeddings.": "embed_tokens.",
        ".attention.wo.": ".self_attn.o_proj.",
        ".feed_forward.w1.": ".mlp.gate_proj.",
        ".feed_forward.w2.": ".mlp.down_proj.",
        ".feed_forward.w3.": ".mlp.up_proj.",
        ".attention_norm.": ".input_layernorm.",
        ".ffn_norm.": ".post_attention_layernorm.",
        "output.": "lm_head.",
    },
    splits=_internlm2_splits,
)
_NAMES_OF_GPT2 = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    "transformer.ln_f.": "model.norm.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
}
_EXAONE = Alias(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
    defaults={"rms_norm_eps": 1e-5},
    names={
        **_NAMES_OF_GPT2,
        ".attn.attention.out_proj.": ".self_attn.o_proj.",
        ".attn.attention.": ".self_attn.",
        ".mlp.c_fc_0.": ".mlp.gate_proj.",
        ".mlp.c_fc_1.": ".mlp.up_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
    },
    left_out=("transformer.rotary.",),
)
_MINICPM = Alias(
    model_type="granite",
    architecture="GraniteForCausalLM",
    defaults={"tie_word_embeddings": True},
    derived=_minicpm,
    assumed={"num_experts": (0,), "sparse_config": (None,), "mup_denominator": (None, 32)},
)
_CHATGLM = Alias(
    model_type="glm",
    architecture="GlmForCausalLM",
    fields={
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "seq_length": "max_position_embeddings",
        "layernorm_epsilon": "rms_norm_eps",
        "add_qkv_bias": "attention_bias",
    },
    assumed={
        "rmsnorm": (True,),
        "add_bias_linear": (False,),
        "post_layer_norm": (True,),
        "apply_residual_connection_post_layernorm": (False,),
        "original_rope": (True,),
        "prefix_projection": (False,),
        "pre_seq_len": (None,),
        "quantization_bit": (0, None),
    },
    defaults={"rms_norm_eps": 1e-5},
    derived=_chatglm,
    names={
        "transformer.embedding.word_embeddings.": "model.embed_tokens.",
        "transformer.encoder.final_layernorm.": "model.norm.",
        "transformer.encoder.layers.": "model.layers.",
        "transformer.output_layer.": "lm_head.",
        ".self_attention.dense.": ".self_attn.o_proj.",
        ".mlp.dense_h_to_4h.": ".mlp.gate_up_proj.",
        ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
    },
    splits=_chatglm_splits,
    left_out=("transformer.rotary_pos_emb.",),
)
_BAICHUAN = Alias(model_type="llama", architecture="LlamaForCausalLM", splits=_in_thirds(".self_attn.W_pack."))
_BAICHUAN2 = Alias(model_type="llama", architecture="LlamaForCausalLM", derived=_baichuan2, splits=_baichuan2_splits)
_QWEN = Alias(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields={"layer_norm_epsilon": "rms_norm_eps", "rotary_emb_base": "rope_theta"},
    assumed={"no_bias": (True,), "rotary_pct": (1.0,), "scale_attn_weights": (True,)},
    derived=_qwen,
    names={
        **_NAMES_OF_GPT2,
        ".attn.c_proj.": ".self_attn.o_proj.",
        ".mlp.w1.": ".mlp.up_proj.",
        ".mlp.w2.": ".mlp.gate_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
    },
    splits=_in_thirds(".attn.c_attn."),
)

ALIASES: dict[tuple[str, str], Alias] = {
    ("kimi_k2", "DeepseekV3ForCausalLM"): Alias(model_type="deepseek_v3", architecture="DeepseekV3ForCausalLM"),
    ("mimo", "MiMoForCausalLM"): Alias(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        assumed={"attention_bias": (True,)},
        left_out=("model.mtp_layers.",),  # a draft head
    ),
    ("internlm", "InternLMForCausalLM"): _INTERNLM,
    ("internlm2", "InternLM2ForCausalLM"): _INTERNLM2,
    ("minicpm", "MiniCPMForCausalLM"): _MINICPM,
    ("exaone", "ExaoneForCausalLM"): _EXAONE,
    ("chatglm", "ChatGLMModel"): _CHATGLM,
    ("chatglm", "ChatGLMForConditionalGeneration"): _CHATGLM,
    ("baichuan", "BaiChuanForCausalLM"): _BAICHUAN,
    ("baichuan", "BaichuanForCausalLM"): _BAICHUAN2,
    ("orion", "OrionForCausalLM"): _ORION,
    ("qwen", "QWenLMHeadModel"): _QWEN,
    ("Yi", "YiForCausalLM"): _YI,
    ("aquila", "AquilaForCausalLM"): _LLAMA,
    ("aquila", "AquilaModel"): _LLAMA,
    ("xverse", "XverseForCausalLM"): _LLAMA,
}
"""By model_type and architecture of config.json."""
