"""Writes a model folder with rounded weights, in a format of compressed-tensors, which other programs read, too."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from rich.filesize import decimal
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint.copy_files import copy_beside_weights
from .checkpoint.families import NotCarriedError
from .checkpoint.folder import ModelFolder
from .checkpoint.quantization import parse_quantization
from .checkpoint.source import find_model
from .core.progress import told
from .errors import ModelError, StartupError
from .layers.formats import encoder_of
from .layers.formats.base import Encoder
from .layers.formats.codes import GROUP
from .layers.linear import Head, Linear
from .layers.methods.plain import PLAIN
from .models.loader import make_decoder
from .models.weights import match, open_files, targets_of

WrittenFormat = Literal["int8", "int4", "fp8"]

_INT = {"type": "int", "strategy": "group", "group_size": GROUP, "dynamic": False}
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
_FORMATS: dict[WrittenFormat, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "int8": ("pack-quantized", {**_INT, "num_bits": 8, "symmetric": True}, None),
    "int4": ("pack-quantized", {**_INT, "num_bits": 4, "symmetric": False}, None),
    "fp8": (
        "float-quantized",
        {**_FP8, "strategy": "channel", "dynamic": False},
        {**_FP8, "strategy": "token", "dynamic": True},
    ),
}
"""compressed-tensors' names of each format, of how weights are rounded, and of how activations are."""
_SHARD_BYTES = 2**30
"""The most that a file with several tensors has, and so what is kept in memory before it is written."""


def quantize(model: str, out: Path, to: WrittenFormat) -> str:
    """Write a folder `out` with rounded weights, and return what has been done.

    Raises StartupError if the model cannot be written so, or the folder cannot be written at all.
    """
    folder = ModelFolder.open(find_model(model))
    if folder.quantization is not None:
        raise ModelError(f"the weights in {folder.path} are quantized already ({folder.quantization['quant_method']})")
    shapes = _projections(folder)
    config = _config(to)
    encoder = _encoder(config)
    plain = {name for name, shape in shapes.items() if not _fits(encoder, shape)}
    config["ignore"] += sorted(plain)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StartupError(f"{out} is not an empty folder")
        out.mkdir(parents=True, exist_ok=True)
        try:
            copy_beside_weights(folder.path, out)
            size = _write_shards(_tensors(folder, shapes.keys() - plain, encoder), out)
            _write_json(out / "config.json", folder.config | {"quantization_config": config})
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise StartupError(f"{out} cannot be written: {error}") from error
    kept = f", and {len(plain)} stay plain, since they have no whole groups of {GROUP} inputs" if plain else ""
    return (
        f"{out}: {len(shapes) - len(plain)} layers are rounded to {to}{kept}. The weights take {size / 2**20:.0f} MiB."
    )


def _projections(folder: ModelFolder) -> dict[str, tuple[int, int]]:
    """The sizes of the linear layers that are to be rounded, by their names in the checkpoint."""
    if folder.predictor is not None:
        raise ModelError(f"{folder.architecture} is an encoder, and only models that generate are written")
    try:
        with torch.device("meta"):
            decoder = make_decoder(folder, lambda *_: PLAIN, 1)
    except NotCarriedError as reason:
        raise ModelError(f"only models of the decoder are written, which does not carry {reason}") from None
    of_modules = targets_of(decoder)
    found = match({name: target for _, targets in of_modules for name, target in targets.items()}, folder)
    shapes = {}
    for module, targets in of_modules:
        if isinstance(module, Linear) and not isinstance(module, Head):
            weights = {name: target.memory for name, target in targets.items() if name.endswith(".weight")}
            for name, memory in weights.items():
                if name not in found:
                    raise ModelError(f"{folder.path} lacks {name}")
                shapes[found[name][0].name.removesuffix(".weight")] = (memory.shape[0], memory.shape[1])
    return shapes


def _config(to: WrittenFormat) -> dict[str, Any]:
    """What config.json says of the weights. The last layer stays plain, as other programs expect."""
    form, weights, activations = _FORMATS[to]
    group = {
        "targets": ["Linear"],
        "format": form,
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        # Of transformers: compressed-tensors (0.20) fills no packed zero points, unless weights become plain at once.
        **({} if weights["symmetric"] else {"dequantize": True}),
    }


def _encoder(config: dict[str, Any]) -> Encoder:
    """What writes a layer as a config says that it is to be read."""
    scheme = parse_quantization(config).scheme("layer")
    assert scheme is not None
    return encoder_of(scheme)


def _fits(encoder: Encoder, shape: tuple[int, int]) -> bool:
    try:
        encoder.tensors(*shape)
    except ValueError:
        return False
    return True


def _tensors(folder: ModelFolder, rounded: set[str], encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
    """The tensors to be written. Those of the checkpoint are read one by one."""
    names = []
    for open_file in open_files(folder):
        with open_file() as tensors:
            names += [(open_file, name) for name in tensors.keys()]  # noqa: SIM118 - not a dict
    done = size = 0
    with told(lambda seconds: f"rounding: {done} of {len(names)} tensors, {decimal(size)} read ({seconds:.0f} s)"):
        for open_file, name in names:
            with open_file() as tensors:
                tensor = tensors.get_tensor(name)
            layer = name.removesuffix(".weight")
            if name != layer and layer in rounded:
                yield from ((f"{layer}.{kind}", part) for kind, part in encoder.encode(tensor).items())
            else:
                yield name, tensor
            done, size = done + 1, size + tensor.nbytes


def _write_shards(tensors: Iterator[tuple[str, Tensor]], out: Path) -> int:
    """Write files of tensors, and the index of several. Returns the bytes of all tensors."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(shard, out / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            write()
            size = 0
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    files = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(out / "model.safetensors.index.json", content)
    for index, file in enumerate(files):
        (out / f"{index}.safetensors").rename(out / file)
    return total


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
