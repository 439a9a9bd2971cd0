"""The tensors of a checkpoint, from those of a GGUF file: by the names that the library `gguf` knows, and by a table of
those that llama.cpp keeps in another form (its folder `conversion/` says in which).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .file import GgufFile, parts_of
from .tensors import added_to, check_heads, heads_of

Array = Any
"""numpy's, in float32 and in torch's order of dimensions."""
Config = dict[str, Any]
_MOST_STREAMS = 3
"""Gemma 3n's, beside the first: llama.cpp converts no more."""


class _Made(NamedTuple):
    """How a tensor is made of some of the file's."""

    stored: tuple[str, ...]
    """Their names in a layer."""
    make: Callable[..., Array] = lambda _config, stored: stored
    """Of config.json and of these."""


def _one_below_other(_config: Config, gate: Array, up: Array) -> Array:
    """(2 * inner, width), or this for each expert."""
    return np.concatenate([gate, up], axis=-2)


def _inputs_first(_config: Config, *stored: Array) -> Array:
    """(experts, inputs, outputs) of experts (experts, outputs, inputs), whose outputs are side by side."""
    return np.concatenate(stored, axis=1).swapaxes(1, 2)


def _in_turns(_config: Config, gate: Array, up: Array) -> Array:
    """Gates and what they gate in turns, along the last dimension but that of inputs, if there is one."""
    return np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])


def _in_turns_inputs_first(config: Config, gate: Array, up: Array) -> Array:
    return _in_turns(config, gate, up).swapaxes(1, 2)


def _keys_and_values(_config: Config, keys: Array, values: Array) -> Array:
    """What expands latents, of (heads, latents, keys) and (heads, values, latents): keys, then values of each head."""
    return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, keys.shape[1])


def _by_key_head(config: Config, qkv: Array, gates: Array) -> Array:
    """Of all queries, keys and values, and all gates: for each head of keys its query, key, values and gates."""
    heads, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    queries, keys, values = np.split(qkv, [heads * size, 2 * heads * size])
    parts = [part.reshape(heads, -1, part.shape[-1]) for part in (queries, keys, values, gates)]
    return np.concatenate(parts, axis=1).reshape(-1, qkv.shape[-1])


def _in_groups(config: Config, tiled: Array) -> Array:
    """Rows of value heads, of which those of a head of keys stand together. In the file, heads of keys take turns."""
    heads = config["linear_num_key_heads"]
    parts = tiled.reshape(config["linear_num_value_heads"] // heads, heads, -1, *tiled.shape[1:])
    return parts.swapaxes(0, 1).reshape(tiled.shape)


def _values_in_groups(config: Config, stored: Array) -> Array:
    """The same for the last of queries, keys and values."""
    before = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    return np.concatenate([stored[:before], _in_groups(config, stored[before:])])


def _inputs_in_groups(config: Config, stored: Array) -> Array:
    return _in_groups(config, stored.T).T


def _logarithm_in_groups(config: Config, decay: Array) -> Array:
    return _in_groups(config, np.log(-decay))


def _flat(config: Config, stored: Array) -> Array:
    """Of norms that the file has by groups, with a row for each. What has other rows stays, and does not fit."""
    groups = config["mamba_n_groups"] if "mamba_n_groups" in config else config["n_groups"]
    return stored.reshape(-1) if len(stored) == groups else stored


def _one_of(index: int, _config: Config, stored: Array) -> Array:
    """Of several that are one in the file."""
    return stored[index]


def _logarithm(_config: Config, decay: Array) -> Array:
    return np.log(-decay)


_Table = Mapping[str, tuple[_Made, ...]]
"""By the end of a checkpoint's name: in which ways the tensor may be stored."""

_EXPERTS: _Table = {
    ".experts.gate_up_proj": (
        _Made(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _one_below_other),
        _Made(("ffn_gate_up_exps.weight",)),
    ),
    ".experts.up_proj": (_Made(("ffn_up_exps.weight",)),),
    ".experts.down_proj": (_Made(("ffn_down_exps.weight",)),),
    ".e_score_correction_bias": (_Made(("exp_probs_b.bias",)),),
}
_STATES: _Table = {".A_log": (_Made(("ssm_a",), _logarithm),), ".dt_bias": (_Made(("ssm_dt.bias",)),)}
_MAMBA_2: _Table = {
    **_STATES,
    ".mixer.norm.weight": (_Made(("ssm_norm.weight",), _flat),),
    ".mamba.norm.weight": (_Made(("ssm_norm.weight",), _flat),),
}
_GRANITE: _Table = {
    **_MAMBA_2,
    ".router.weight": (_Made(("ffn_gate_inp.weight",)),),
    ".shared_mlp.input_linear.weight": (
        _Made(("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), _one_below_other),
        _Made(("ffn_gate.weight", "ffn_up.weight"), _one_below_other),
    ),
    ".shared_mlp.output_linear.weight": (_Made(("ffn_down_shexp.weight",)), _Made(("ffn_down.weight",))),
}
_VALUE_HEADS: _Table = {
    ".in_proj_qkv.weight": (_Made(("attn_qkv.weight",), _values_in_groups),),
    ".in_proj_z.weight": (_Made(("attn_gate.weight",), _in_groups),),
    ".in_proj_b.weight": (_Made(("ssm_beta.weight",), _in_groups),),
    ".in_proj_a.weight": (_Made(("ssm_alpha.weight",), _in_groups),),
    ".conv1d.weight": (_Made(("ssm_conv1d.weight",), _values_in_groups),),
    ".A_log": (_Made(("ssm_a",), _logarithm_in_groups),),
    ".dt_bias": (_Made(("ssm_dt.bias",), _in_groups),),
    ".out_proj.weight": (_Made(("ssm_out.weight",), _inputs_in_groups),),
}
_REARRANGED: Mapping[str, _Table] = {
    "deepseek2": {".kv_b_proj.weight": (_Made(("attn_k_b.weight", "attn_v_b.weight"), _keys_and_values),)},
    "gpt-oss": {
        ".experts.gate_up_proj": (_Made(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _in_turns_inputs_first),),
        ".experts.gate_up_proj_bias": (_Made(("ffn_gate_exps.bias", "ffn_up_exps.bias"), _in_turns),),
        ".experts.down_proj": (_Made(("ffn_down_exps.weight",), _inputs_first),),
        ".experts.down_proj_bias": (_Made(("ffn_down_exps.bias",)),),
        ".sinks": (_Made(("attn_sinks.weight",)),),
    },
    "llama4": {
        ".experts.gate_up_proj": (_Made(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _inputs_first),),
        ".experts.down_proj": (_Made(("ffn_down_exps.weight",), _inputs_first),),
    },
    "qwen3next": {
        **_STATES,
        ".in_proj_qkvz.weight": (_Made(("attn_qkv.weight", "attn_gate.weight"), _by_key_head),),
    },
    "qwen35": _VALUE_HEADS,
    "qwen35moe": _VALUE_HEADS,
    "nemotron_h": _MAMBA_2,
    "nemotron_h_moe": _MAMBA_2,
    "falcon-h1": _MAMBA_2,
    "mamba2": _MAMBA_2,
    "mamba": _STATES,
    "jamba": _STATES,
    "granitemoe": _GRANITE,
    "granitehybrid": _GRANITE,
    "gemma3n": {
        ".correct_output_scale": (_Made(("altup_correct_scale.weight",)),),
        **{
            f".altup_{name}projections.{index}.weight": (_Made((stored,), partial(_one_of, index)),)
            for name, stored in (("", "altup_proj.weight"), ("unembed_", "altup_unembd_proj.weight"))
            for index in range(_MOST_STREAMS)
        },
    },
    "gemma4": {
        ".layer_scalar": (_Made(("layer_output_scale.weight",)),),
        ".router.scale": (_Made(("ffn_gate_inp.scale",)),),
        ".router.per_expert_scale": (_Made(("ffn_down_exps.scale",)),),
    },
    "lfm2moe": {".expert_bias": (_Made(("exp_probs_b.bias",)),)},
}
"""By family. What is not here, or in none of these ways in a file, is stored as it is."""
_IN_METADATA = {f".act_fn.{name}": f"xielu.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")}
"""Numbers of layers (Apertus's) that are in keys of the file, by the end of a checkpoint's name."""


def tensors_by_name(
    file: GgufFile, config: Config, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Array]]:
    """The tensors of a model that has these, one after the other. ValueError names one that is missing, or does not
    fit.
    """
    import gguf  # which takes a moment

    stored = {tensor.name: tensor for part in parts_of(file.path) for tensor in gguf.GGUFReader(part).tensors}

    def read(name: str) -> Array:
        file.begin_of(name, 0)  # it is read
        numbers = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        if heads := heads_of(file, name, config):
            check_heads(name, len(numbers), heads)
            numbers = numbers.reshape(heads, -1, 2, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)
        return numbers - added_to(file, name)

    names = _Names(file, config, gguf)
    for name, shape in shapes.items():
        if (number := _in_metadata(file, name)) is not None:
            yield name, np.full(shape, number, np.float32)
            continue
        made = names.made(name)
        if missing := [part for part in made.stored if part not in file.tensors]:
            raise ValueError(f"the file lacks {missing[0]}")
        parts = {part: read(part) for part in made.stored}
        try:
            found = made.make(config, *parts.values())
        except ValueError:  # numpy's, of parts that do not go together
            found = None
        if found is None or _without_ones(found.shape) != _without_ones(shape):
            stored_as = " and ".join(f"{part} {numbers.shape}" for part, numbers in parts.items())
            raise ValueError(f"{name} of the model has shape {shape}, and the file {stored_as}")
        yield name, found.reshape(shape)


def _in_metadata(file: GgufFile, name: str) -> float | None:
    """A number of a layer, which files have in a list of all layers'. ValueError if that is too short."""
    if (key := next((key for end, key in _IN_METADATA.items() if name.endswith(end)), None)) is None:
        return None
    values, layer = file.get(key), int(_layer_of(name))
    if not isinstance(values, list) or len(values) <= layer:
        raise ValueError(f"{key} is {values!r}, and has no number for layer {layer}")
    return float(values[layer])


def _layer_of(name: str) -> str:
    """The number of a tensor's layer; empty if it is in none."""
    return next((part for part in name.split(".") if part.isdecimal()), "")


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """A shape as far as it matters: llama.cpp drops the ones of convolutions, and adds one to a number of each head."""
    return [size for size in shape if size != 1]


class _Names:
    """What llama.cpp calls the tensors of a family."""

    def __init__(self, file: GgufFile, config: Config, gguf: Any) -> None:
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
        self._map = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
        self._table = {**_EXPERTS, **_REARRANGED.get(file.architecture, {})}
        self._file = file

    def made(self, name: str) -> _Made:
        """How a checkpoint's tensor is made, with the full names of the file's."""
        prefix = f"blk.{_layer_of(name)}." if ".layers." in name else ""
        table = next((ways for end, ways in self._table.items() if name.endswith(end)), ())
        ways = [way._replace(stored=tuple(f"{prefix}{part}" for part in way.stored)) for way in table]
        # Some families have another name for their body in the checkpoints that llama.cpp knows.
        spellings = (name, name.replace("model.", "backbone.", 1))
        known = [self._map.get_name(spelling, try_suffixes=(".weight", ".bias")) for spelling in spellings]
        as_it_is = _Made((next(filter(None, known), name),))
        fitting = next((way for way in (*ways, as_it_is) if self._has(way) == len(way.stored)), None)
        return fitting or max(ways, key=self._has, default=as_it_is)  # if none fits, a part of this one is missing

    def _has(self, made: _Made) -> int:
        """How many of a tensor's parts are in the file."""
        return sum(part in self._file.tensors for part in made.stored)
