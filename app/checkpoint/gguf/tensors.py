"""Where the tensors of the decoder lie in a GGUF file, so that they need not be converted."""

import re
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

from ..families import FAMILIES, NotCarriedError, parse_decoder_config
from .file import GgufFile


class Kind(NamedTuple):
    """A type of tensors. Each run of `inputs` numbers of a row takes `size` bytes."""

    name: str
    inputs: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    30: Kind("BF16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
}
"""The types that are read, by ggml's number of the type."""
KIND_OF = {kind.name: kind for kind in KINDS.values()}
"""The same by their names."""
_PLAIN = ("F32", "F16", "BF16")
"""The types of plain numbers."""

_IN_LAYER = re.compile(r"blk\.\d+\.(.+)")
_IN_DECODER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")
_OF_EXPERT = re.compile(r"\.experts\.\d+\.")
_OF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OF_PHI3 = {"ffn_up": "mlp.gate_up_proj"}
_OF_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OF_OLMO2 = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OF_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
"""A star is the number of an expert: the tensors of all are one in the file."""
_OF_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
_NAMES_OF_LAYER = {
    "llama": _OF_LAYER | _OF_MIXTRAL,
    "olmoe": _OF_LAYER | _OF_EXPERTS,
    "qwen3moe": _OF_LAYER | _OF_EXPERTS,
    "qwen3vlmoe": _OF_LAYER | _OF_EXPERTS,
    "phi3": _OF_LAYER | _OF_PHI3,
    "gemma2": _OF_LAYER | _OF_GEMMA,
    "gemma3": _OF_LAYER | _OF_GEMMA,
    "olmo2": _OF_LAYER | _OF_OLMO2,
}
"""From llama.cpp's names to a checkpoint's, by family; for all others _OF_LAYER."""
_TOGETHER = ({"attn_q.weight", "attn_k.weight", "attn_v.weight"}, {"ffn_gate.weight", "ffn_up.weight"})
"""Tensors that a layer has all of, or none, but for Phi-3, where some are one."""


_ROTATE_NEIGHBOURS = {"llama", "smollm3", "internlm2", "granite", "granitemoe", "granitehybrid", "minicpm", "mistral3"}
_ROTATE_NEIGHBOURS |= {"arcee", "olmo"}
"""Families whose rotary embedding turns neighbouring dimensions in llama.cpp, and halves in transformers."""


_OTHER_EXPERTS = {"gpt-oss"}
"""Families whose experts have biases, and other forms in files than the decoder reads."""
_ADD_ONE = {"gemma", "gemma2", "gemma3", "nemotron"}
"""Families whose norms' weights are added to one, and llama.cpp has added it."""
_DELTA_NETS = {"qwen3next", "qwen35", "qwen35moe"}


class StoredTensor(NamedTuple):
    """Where a tensor of a checkpoint lies in a file, and how it differs there."""

    kind: str
    """The name of its type, one of KINDS."""
    shape: tuple[int, ...]
    """In torch's order."""
    begin: int
    """The byte of the file at which it begins."""
    heads: int = 0
    """In each of so many heads, rows of the first and of the second half alternate; 0: rows are in their own order."""
    added: float = 0.0
    """What the file has added to the checkpoint's numbers."""

    def check(self, name: str) -> None:
        """ValueError for what no tensor can be."""
        sizes = [*self.shape, self.begin + 1]
        if self.kind not in KIND_OF or len(sizes) < 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(f"{name} is of type {self.kind} and shape {self.shape}, from byte {self.begin} on")
        if self.heads:
            check_heads(name, self.shape[0], self.heads)


def decoder_tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, StoredTensor] | str:
    """The tensors of a model, by their names in a checkpoint; or why the decoder cannot read them as they are.

    `config` is the model's config.json. ValueError for a file that is broken.
    """
    if config["model_type"] not in FAMILIES or file.architecture in _OTHER_EXPERTS:
        return f"the decoder does not run {config['model_type']} as such a file has it"
    try:
        experts = parse_decoder_config(config).experts
    except NotCarriedError as reason:
        return f"the decoder does not carry {reason}"
    tensors: dict[str, StoredTensor] = {}
    names = _names(file, config["num_hidden_layers"])
    _refuse_missing(names, file.architecture, config["num_hidden_layers"])
    for name, ours in names.items():
        info = file.tensors[name]
        if info.kind not in KINDS:
            return f"it cannot read {name}, whose type has the number {info.kind}"
        stored = _stored(file, name, config)
        if "*" not in ours:
            tensors[ours] = stored
        elif experts and (len(info.shape), info.shape[0]) == (3, experts.num_experts):
            tensors |= _of_each_expert(stored, ours)
        else:
            raise ValueError(f"{name} has shape {info.shape}, and is not of {experts and experts.num_experts} experts")
    return tensors


def _stored(file: GgufFile, name: str, config: dict[str, Any]) -> StoredTensor:
    """A tensor of the file, of a type in KINDS. ValueError names one that is broken."""
    info = file.tensors[name]
    kind = KINDS[info.kind]
    stored = StoredTensor(kind.name, info.shape, info.begin, heads_of(file, name, config), added_to(file, name))
    stored.check(name)
    inputs = info.shape[-1] if len(info.shape) > 1 else 1
    if inputs % kind.inputs:
        raise ValueError(f"{name} has shape {info.shape}, whose rows are no whole blocks of {kind.name}")
    file.begin_of(name, prod(info.shape) // kind.inputs * kind.size)  # it is read
    return stored


def _of_each_expert(stored: StoredTensor, ours: str) -> dict[str, StoredTensor]:
    """The parts of a tensor (experts, outputs, inputs)."""
    experts, outputs, inputs = stored.shape
    size = outputs * row_bytes(stored.kind, inputs)
    return {
        ours.replace("*", str(expert)): StoredTensor(stored.kind, (outputs, inputs), stored.begin + expert * size)
        for expert in range(experts)
    }


def name_in_file(file: GgufFile, name: str) -> str:
    """What a file calls a tensor that the decoder calls `name`, whether it is there or not.

    `name` may lack the prefix "model."; what is in no such file keeps its own name.
    """
    module, _, kind = name.rpartition(".")
    kind = "weight" if kind == "blocks" else kind
    if match := _IN_DECODER.fullmatch(module):
        of_layer = _NAMES_OF_LAYER.get(file.architecture, _OF_LAYER)
        theirs = {ours: theirs for theirs, ours in of_layer.items()}
        ours = _OF_EXPERT.sub(".experts.*.", match[2])
        return f"blk.{match[1]}.{theirs[ours]}.{kind}" if ours in theirs else name
    theirs = {ours.removeprefix("model."): theirs for theirs, ours in _OF_MODEL.items()}
    ours = module.removeprefix("model.")
    return f"{theirs[ours]}.{kind}" if ours in theirs else name


def split(tensors: dict[str, StoredTensor]) -> dict[str, dict[str, Any]]:
    """What `app.checkpoint.quantization.gguf_tensors` reads: tensors of quantized layers ("blocks"), and all others
    ("numbers").

    Embeddings that are also the last layer's weight are among both: a row of them is read as plain numbers.
    """
    blocks = {name.removesuffix(".weight"): stored for name, stored in tensors.items() if _is_quantized(name, stored)}
    numbers = {name: stored for name, stored in tensors.items() if not _is_quantized(name, stored)}
    embeddings = tensors.get("model.embed_tokens.weight")
    if "lm_head.weight" not in tensors and embeddings is not None and embeddings.kind not in _PLAIN:
        blocks["lm_head"] = embeddings
    return {
        "blocks": {name: stored._asdict() for name, stored in blocks.items()},
        "numbers": {name: stored._asdict() for name, stored in numbers.items()},
    }


def _is_quantized(name: str, stored: StoredTensor) -> bool:
    """Whether a tensor is the weight of a linear layer, in blocks."""
    is_linear = ".experts." in name or name.endswith(("_proj.weight", "lm_head.weight"))
    return is_linear and stored.kind not in _PLAIN


def row_bytes(kind: str, inputs: int) -> int:
    """What a row of a type takes. ValueError for one that is no whole number of blocks."""
    _, block, size = KIND_OF[kind]
    if inputs % block:
        raise ValueError(f"{inputs} inputs are not whole blocks of {kind}, which have {block}")
    return inputs // block * size


def _names(file: GgufFile, num_layers: int) -> dict[str, str]:
    """Names of the file's tensors, and what checkpoints call them."""
    of_layer = _NAMES_OF_LAYER.get(file.architecture, _OF_LAYER)
    wanted = dict(_OF_MODEL)
    for layer in range(num_layers):
        wanted |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{ours}" for name, ours in of_layer.items()}
    split_names = {name: name.rpartition(".") for name in file.tensors}
    return {
        name: f"{wanted[module]}.{kind}"
        for name, (module, _, kind) in split_names.items()
        if module in wanted and kind in ("weight", "bias")
    }


def _refuse_missing(names: Iterable[str], family: str, num_layers: int) -> None:
    """ValueError names a tensor that one layer has and another has not, or that others are nothing without."""
    of_layers = {match[1] for name in names if (match := _IN_LAYER.fullmatch(name))}
    of_layers |= {name for group in _TOGETHER if family != "phi3" and group & of_layers for name in group}
    every = {f"blk.{layer}.{name}" for name in of_layers for layer in range(num_layers)}
    if missing := sorted((every | {"output_norm.weight"}) - set(names)):
        raise ValueError(f"the file lacks {len(missing)} tensors of the model, {missing[0]} for one")


def heads_of(file: GgufFile, name: str, config: dict[str, Any]) -> int:
    """See `StoredTensor.heads`: llama.cpp has its own order of rows for families that rotate neighbours there."""
    if file.architecture not in _ROTATE_NEIGHBOURS:
        return 0
    heads = {".attn_q.": config["num_attention_heads"], ".attn_k.": config["num_key_value_heads"]}
    return next((number for part, number in heads.items() if part in name), 0)


def check_heads(name: str, rows: int, heads: int) -> None:
    """ValueError for a tensor whose rows are no halves of so many heads."""
    if heads < 0 or rows % (2 * heads):
        raise ValueError(f"{name} has {rows} rows, which are no whole halves of {heads} heads")


def added_to(file: GgufFile, name: str) -> float:
    """See `StoredTensor.added`: some families have norms whose weights are added to one, and llama.cpp has added it."""
    adds = file.architecture in _ADD_ONE or (file.architecture in _DELTA_NETS and ".ssm_" not in name)
    return 1.0 if adds and name.endswith("norm.weight") else 0.0
