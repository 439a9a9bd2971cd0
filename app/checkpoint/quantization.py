"""What `quantization_config` in config.json says: the scheme in which each weight is stored. Without torch."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .gguf.tensors import StoredTensor

_EMBEDDINGS = "model.embed_tokens.weight"

Kind = Literal["gptq", "awq", "packed", "int8", "float8", "gguf", "rows", "mxfp4"]


@dataclass(frozen=True)
class Scheme:
    """How one layer's weight is stored. `kind` names the reader in `app.layers.formats`."""

    kind: Kind
    bits: int = 8
    group: int | None = None
    """Inputs that share a scale; None: all inputs of an output do."""
    block: tuple[int, int] | None = None
    """Outputs and inputs that share a scale, of FP8 weights."""
    is_whole: bool = False
    """Whether the whole weight has one scale."""
    has_zeros: bool = False
    """Whether there are zero points, where a format can also do without."""
    is_sorted: bool = False
    """Whether a tensor says which group each input is in, since groups are not runs of neighbours."""
    zero_offset: int = 0
    """What is missing in stored zero points."""
    block_type: str = ""
    """ggml's name of the type of blocks."""
    scale_name: str = "weight_scale"
    has_input_scale: bool = False
    """Whether there is a scale for activations. It is not used: they are scaled by their own size."""


@dataclass(frozen=True)
class Quantization:
    """The scheme of each layer, by its name in the checkpoint, such as `model.layers.0.mlp.up_proj`."""

    _scheme_of: Callable[[str], Scheme | None]

    def scheme(self, name: str) -> Scheme | None:
        """None for a layer whose weight is plain numbers."""
        return self._scheme_of(name)


def parse_quantization(config: dict[str, Any]) -> Quantization:
    """ValueError names what is not supported."""
    method = str(config.get("quant_method"))
    parsers = {
        "awq": _awq,
        "gptq": _gptq,
        "compressed-tensors": _compressed,
        "fp8": _fp8,
        "gguf": _gguf,
        "bitsandbytes": _bitsandbytes,
        "mxfp4": _mxfp4,
    }
    if method not in parsers:
        raise ValueError(f"quant_method {method!r} is not supported: it is none of {', '.join(parsers)}")
    return Quantization(parsers[method](config))


def has_four_bits(config: dict[str, Any]) -> bool:
    """Whether weights are stored in NF4 or FP4, which are read as plain numbers."""
    return config.get("quant_method") == "bitsandbytes" and config.get("load_in_4bit") is True


def _outside(scheme: Scheme, config: dict[str, Any], plain: Sequence[str]) -> Callable[[str], Scheme | None]:
    """The scheme, but for layers whose names contain one of these parts."""
    left_out = (*plain, *(config.get("modules_to_not_convert") or ()))
    return lambda name: None if any(part in name for part in left_out) else scheme


def _awq(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    if (version := str(config.get("version", "gemm")).lower()) != "gemm":
        raise ValueError(f"version {version!r} of AWQ is not supported: it is not 'gemm'")
    if (bits := config.get("bits", config.get("w_bit"))) != 4:
        raise ValueError(f"AWQ with {bits} bits is not supported")
    scheme = Scheme("awq", 4, _group(config.get("group_size", config.get("q_group_size"))))
    return _outside(scheme, config, ("lm_head",))


def _gptq(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    if (bits := config.get("bits")) not in (2, 4, 8):
        raise ValueError(f"GPTQ with {bits} bits is not supported")
    if config.get("dynamic"):
        raise ValueError("GPTQ with rules for single layers ('dynamic') is not supported")
    offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    scheme = Scheme("gptq", bits, _group(config.get("group_size")), zero_offset=offset)
    return _outside(scheme, config, () if config.get("lm_head") else ("lm_head",))


def _fp8(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    size = config.get("weight_block_size")
    block = None if size is None else (int(size[0]), int(size[1]))
    is_static = config.get("activation_scheme") == "static"
    scheme = Scheme(
        "float8", 8, block=block, is_whole=block is None, scale_name="weight_scale_inv", has_input_scale=is_static
    )
    return _outside(scheme, config, ("lm_head",))


def _compressed(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    """The schemes of compressed-tensors: groups of layers, each with its targets."""
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError("sparse weights of compressed-tensors are not supported")
    groups = [
        ([str(target) for target in group.get("targets") or ()], _compressed_scheme(group, config))
        for group in (config.get("config_groups") or {}).values()
    ]
    ignored = [str(name) for name in config.get("ignore") or ()]

    def scheme_of(name: str) -> Scheme | None:
        if any(_matches(target, name) for target in ignored):
            return None
        return next((scheme for targets, scheme in groups if any(_matches(t, name) for t in targets)), None)

    return scheme_of


def _compressed_scheme(group: dict[str, Any], config: dict[str, Any]) -> Scheme:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")
    if inputs and (inputs.get("num_bits"), inputs.get("type", "int")) != (8, kind):
        raise ValueError(f"compressed-tensors with activations of {inputs.get('num_bits')} bits is not supported")
    if strategy not in ("tensor", "channel", "group", "block"):
        raise ValueError(f"strategy {strategy!r} of compressed-tensors is not supported")
    form = group.get("format") or config.get("format")
    form = {"naive-quantized": f"{kind}-quantized"}.get(str(form), form)
    kinds: dict[Any, Kind] = {
        ("float-quantized", "float", 8): "float8",
        ("int-quantized", "int", 8): "int8",
        **{("pack-quantized", "int", bits): "packed" for bits in (2, 4, 8)},
    }
    has_zeros = not weights.get("symmetric", True)
    if type(bits) is not int or (form, kind, bits) not in kinds or (form != "pack-quantized" and has_zeros):
        raise ValueError(f"format {form!r} of compressed-tensors with {kind}{bits} weights is not supported")
    rows, columns = weights.get("block_structure") or (0, 0)
    return Scheme(
        kinds[form, kind, bits],
        bits,
        group=_group(weights.get("group_size")) if strategy == "group" else None,
        block=(int(rows), int(columns)) if strategy == "block" else None,
        is_whole=strategy == "tensor",
        has_zeros=has_zeros,
        is_sorted=weights.get("actorder") == "group",
        has_input_scale=bool(inputs) and not inputs.get("dynamic"),
    )


def _bitsandbytes(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    if config.get("load_in_8bit") is not True:
        raise ValueError("bitsandbytes without load_in_4bit and load_in_8bit is not supported")
    return _outside(Scheme("rows"), config, config.get("llm_int8_skip_modules") or ("lm_head",))


def _mxfp4(_config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    """Of the experts, and of them alone."""
    return lambda name: Scheme("mxfp4", 4, 32) if ".mlp.experts." in name else None


def _gguf(config: dict[str, Any]) -> Callable[[str], Scheme | None]:
    types = {name: Scheme("gguf", block_type=stored.kind) for name, stored in gguf_tensors(config, "blocks").items()}
    return types.get


def gguf_tensors(config: dict[str, Any], part: Literal["blocks", "numbers"]) -> dict[str, StoredTensor]:
    """What the converter has written: layers by their names, as blocks, or tensors by theirs, as plain numbers.

    ValueError for what it has not.
    """
    try:
        tensors = {name: StoredTensor(**stored) for name, stored in config[part].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{part}: {error!r}") from error
    for name, stored in tensors.items():
        stored.check(name)
    return tensors


def embeds_by_head(config: dict[str, Any] | None) -> bool:
    """Whether a GGUF file's embeddings are also the last layer's weight, in blocks: the converter names them twice.

    ValueError for what it has not written.
    """
    if config is None or config.get("quant_method") != "gguf":
        return False
    blocks, numbers = gguf_tensors(config, "blocks"), gguf_tensors(config, "numbers")
    return "lm_head" in blocks and blocks["lm_head"] == numbers.get(_EMBEDDINGS)


def _matches(target: str, name: str) -> bool:
    """Whether a target of compressed-tensors means a linear layer: by class, by name, or by a regular expression."""
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return target == "Linear" or name == target or name.startswith(f"{target}.")


def _group(size: object) -> int | None:
    """A group's size; -1 is a whole row."""
    if type(size) is not int or (size < 1 and size != -1):
        raise ValueError(f"group_size is {size!r}")
    return None if size == -1 else size
