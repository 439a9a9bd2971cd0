"""Fills a model from a checkpoint's files."""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoint.aliases import Alias, Config
from ..checkpoint.folder import ModelFolder
from ..checkpoint.gguf.file import GgufFile
from ..checkpoint.gguf.tensors import name_in_file
from ..checkpoint.quantization import embeds_by_head, has_four_bits
from ..errors import ModelError
from ..layers.linear import Linear
from ..layers.methods import quantization_of
from ..layers.sources import Filled, Target
from .dequantized_tensors import DequantizedTensors
from .filling import Filling, Open, Piece, fill, pieces_of
from .four_bit_tensors import FourBitTensors
from .gguf_tensors import GgufTensor, GgufTensors
from .renamed_tensors import RenamedTensors

_NUMBERS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes, by safetensors' names, that may be converted into each other."""
_CODES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Dtypes of quantized weights. They mean nothing without scales, and so they only fill memory of the same dtype."""
_LEFTOVERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Tensors of old checkpoints that models compute today: frequencies, positions and causal masks."""

_EMBEDDINGS = "embed_tokens.weight"


def load_weights(model: nn.Module, folder: ModelFolder) -> None:
    """Fill every parameter of a model, and make its linear layers ready to multiply, one after the other.

    ModelError names a tensor that is missing, unknown, or does not fit.
    """
    fill(_plan(model, folder))


def _plan(model: nn.Module, folder: ModelFolder) -> deque[Filling]:
    """What fills each module. Nothing else refers to the memory, so that a module can free it."""
    of_modules = targets_of(model)
    targets = {name: target for _, of_module in of_modules for name, target in of_module.items()}
    found = match(targets, folder)
    # Names with the same memory are alternatives. If a checkpoint has several, the model's first is loaded.
    pieces: dict[int, list[Piece]] = {}
    missing: dict[int, str] = {}
    for key, target in targets.items():
        address = target.memory.data_ptr()
        if key in found:
            pieces.setdefault(address, found[key])
        else:
            missing.setdefault(address, key)
    filled = _Filled([targets[key].memory for key in found])
    _refuse_missing(folder, [key for key in missing.values() if targets[key].memory not in filled])
    fillings = deque[Filling]()
    for module, of_module in of_modules:
        addresses = dict.fromkeys(target.memory.data_ptr() for target in of_module.values())
        fillings.append(Filling(module, [piece for address in addresses for piece in pieces.pop(address, ())]))
    return fillings


def fill_layers(layers: Sequence[tuple[str, Linear]], folder: ModelFolder) -> None:
    """Fill some layers, with the beginnings of their tensors' names, and make them ready to multiply.

    ModelError names a tensor that is missing, or does not fit, or that begins so and is none of them.
    """
    of_layers = [
        (layer, {f"{prefix}.{name}": target for name, target in layer.sources("").items()}) for prefix, layer in layers
    ]
    targets = {name: target for _, of_layer in of_layers for name, target in of_layer.items()}
    prefixes = tuple(f"{prefix}." for prefix, _ in layers)
    found: dict[str, list[Piece]] = {}
    for open_file in open_files(folder):
        with open_file() as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if name.startswith(prefixes):
                    found[name] = _pieces_for(targets.get(name), open_file, tensors, name, folder)
    _refuse_missing(folder, [name for name in targets if name not in found])
    fill(deque(Filling(layer, [piece for name in names for piece in found[name]]) for layer, names in of_layers))


def _pieces_for(target: Target | None, open_file: Open, tensors: Any, name: str, folder: ModelFolder) -> list[Piece]:
    if target is None:
        raise _unread(folder, name)
    stored = tensors.get_slice(name)
    if problem := _misfit(stored, target):
        file, (told,) = _as_stored(folder, [name])
        raise ModelError(f"{file}: {told} {problem}")
    return pieces_of(open_file, name, target)


class _Filled:
    """Memory that tensors of a checkpoint fill. What begins in the same place as one of these is filled by others."""

    def __init__(self, memories: Sequence[torch.Tensor]) -> None:
        self._ends = {memory.data_ptr(): memory.data_ptr() + memory.nbytes for memory in memories}
        self._begins = sorted(self._ends)

    def __contains__(self, memory: torch.Tensor) -> bool:
        address = memory.data_ptr()
        before = bisect_right(self._begins, address)
        if before == 0:
            return False
        begin = self._begins[before - 1]
        return begin == address or address + memory.nbytes <= self._ends[begin]


def match(targets: dict[str, Target], folder: ModelFolder) -> dict[str, list[Piece]]:
    """The pieces of each tensor that a folder has, by its name without the prefix "model."."""
    found: dict[str, list[Piece]] = {}
    is_in_head = embeds_by_head(folder.quantization)
    for open_file in open_files(folder):
        with open_file() as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                key = name.removeprefix("model.")
                if key not in targets and (_LEFTOVERS.search(key) or (key == _EMBEDDINGS and is_in_head)):
                    continue
                if key in found:
                    raise ModelError(f"{folder.path} has {name} twice")
                found[key] = _pieces_for(targets.get(key), open_file, tensors, name, folder)
    return found


def has_own_head(folder: ModelFolder) -> bool:
    """Whether the output embedding differs from the input embedding, even if config.json says that they are one."""
    found: dict[str, tuple[Open, str]] = {}
    for open_file in open_files(folder):
        with open_file() as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if (key := name.removeprefix("model.")) in (_EMBEDDINGS, "lm_head.weight"):
                    found[key] = open_file, name
    if len(found) < 2:
        return False
    weights = []
    for open_file, name in found.values():
        with open_file() as tensors:
            weights.append(tensors.get_tensor(name))
    return not (weights[0].dtype is weights[1].dtype and torch.equal(*weights))


def refuse_unmatched(folder: ModelFolder, info: dict[str, Any]) -> None:
    """ModelError names a tensor that transformers has made up, or one that it has not read.

    `info`: the `output_loading_info` of transformers' `from_pretrained`.
    """
    _refuse_missing(folder, list(info["missing_keys"]))
    if unread := sorted(key for key in info["unexpected_keys"] if not _LEFTOVERS.search(key)):
        raise _unread(folder, unread[0])


def _unread(folder: ModelFolder, name: str) -> ModelError:
    file, (told,) = _as_stored(folder, [name])
    return ModelError(f"{file} has a tensor that the model does not: {told}")


def _refuse_missing(folder: ModelFolder, names: list[str]) -> None:
    if names:
        file, told = _as_stored(folder, names)
        raise ModelError(f"{file} lacks {len(told)} tensors of the model, {min(told)} for one")


def _as_stored(folder: ModelFolder, names: list[str]) -> tuple[Path, set[str]]:
    """What to name in an error: the folder and some tensors, or the GGUF file and what they are called there."""
    if folder.gguf_file is None:
        return folder.path, set(names)
    file = GgufFile(folder.gguf_file.resolve())
    return file.path, {name_in_file(file, name) for name in names}


def plain_matrices(folder: ModelFolder) -> set[str]:
    """The names of the layers whose weights are matrices of plain numbers."""
    names = set()
    for open_file in open_files(folder):
        with open_file() as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                stored = tensors.get_slice(name)
                if name.endswith(".weight") and stored.get_dtype() in _NUMBERS and len(stored.get_shape()) == 2:
                    names.add(name.removesuffix(".weight"))
    return names


def plain_tensors(folder: ModelFolder) -> dict[str, torch.Tensor]:
    """All tensors of a folder as plain numbers, by their names."""
    found: dict[str, torch.Tensor] = {}
    for open_file in open_files(folder):
        with open_file() as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    return found


def refuse_codes(folder: ModelFolder) -> None:
    """ModelError names a quantized weight, which transformers would silently convert as if it held plain numbers."""
    for open_file in open_files(folder):
        with open_file() as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                dtype = tensors.get_slice(name).get_dtype()
                if name.endswith("weight") and dtype not in _NUMBERS:
                    raise ModelError(f"{folder.path}: {name} is of dtype {dtype}, and nothing says how to read it")


def targets_of(model: nn.Module) -> list[tuple[nn.Module, dict[str, Target]]]:
    """What fills each module, by all names that a checkpoint's tensors may have, without the prefix "model."."""
    targets = []
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if isinstance(module, Filled):
            sources = module.sources(name)
        else:
            own = module.named_parameters(recurse=False)
            sources = {f"{name}.{kind}": Target(parameter.data) for kind, parameter in own}
        targets.append((module, {f"{parent}.{key}".lstrip("."): target for key, target in sources.items()}))
    return targets


def _misfit(stored: Any, target: Target) -> str:
    """Why a tensor (what `get_slice` gives) cannot fill a target; empty if it can."""
    shape, dtype, memory = stored.get_shape(), stored.get_dtype(), target.memory
    converts = dtype in _NUMBERS and memory.dtype in _NUMBERS.values()
    if not converts and _CODES.get(dtype) is not memory.dtype:
        return f"is of dtype {dtype}, which cannot be converted to {str(memory.dtype).removeprefix('torch.')}"
    cuts = (target.rows, target.columns, *[None] * len(shape))
    taken = tuple(size if cut is None else len(range(size)[cut]) for size, cut in zip(shape, cuts, strict=False))
    is_one_number = memory.numel() == 1 == prod(shape)  # with or without a dimension
    if is_one_number or taken == tuple(memory.shape):
        return ""
    shown = stored.in_numbers if isinstance(stored, GgufTensor) else tuple
    return f"has shape {shown(taken)}, not {shown(memory.shape)}"


def open_files(folder: ModelFolder) -> list[Open]:
    """The files that hold a folder's weights."""
    if (file := folder.gguf_file) is not None:
        tensors = GgufTensors(file, folder.quantization or {})
        return [partial(nullcontext, tensors)]
    if (alias := folder.alias) is not None and alias.renames_tensors:
        return [partial(_renamed, open_file, alias, folder.config) for open_file in _by_own_names(folder)]
    read = _reading_four_bits if has_four_bits(folder.quantization or {}) else reading
    return [partial(read, file) for file in folder.weight_files]


def _by_own_names(folder: ModelFolder) -> list[Open]:
    """The files of a model whose tensors will be renamed, with plain numbers."""
    if (config := folder.read_as_plain) is None:
        return [partial(reading, file) for file in folder.weight_files]
    if has_four_bits(config):
        return [partial(_reading_four_bits, file) for file in folder.weight_files]
    files = []
    for file in folder.weight_files:
        with reading(file):  # it is no broken one
            files.append(safe_open(file, framework="pt"))  # mapped into memory, as long as somebody has it
    return [partial(nullcontext, DequantizedTensors(files, quantization_of(folder, config)))]


@contextmanager
def reading(file: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped: pages are read as they are copied. ModelError if it is broken."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error


@contextmanager
def _renamed(open_file: Open, alias: Alias, config: Config) -> Iterator[RenamedTensors]:
    with open_file() as tensors:
        yield RenamedTensors(tensors, alias, config)


@contextmanager
def _reading_four_bits(file: Path) -> Iterator[FourBitTensors]:
    with reading(file) as tensors:
        yield FourBitTensors(tensors)
