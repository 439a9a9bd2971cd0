"""The methods of linear layers, each in a file of its own, and the choice between them."""

import logging
from collections.abc import Sequence

import torch

from ...checkpoint.folder import ModelFolder
from ...checkpoint.quantization import Quantization, parse_quantization
from ...errors import ModelError
from ..formats import format_of
from ..linear import Choice, Linear, LinearMethod
from .integer import has_kernel
from .onednn import OneDnn, has_bfloat16
from .plain import PLAIN
from .quantized import Rounded, Stored

log = logging.getLogger(__name__)

_BITS = {"int8": 8, "int4": 4}


def choose(folder: ModelFolder, device: torch.device, dtype: torch.dtype, quantization: str) -> Choice:
    """The methods for a model's linear layers. ModelError names what is not supported."""
    plain, stored = _plain_method(folder, device, dtype), _stored(folder)
    if quantization in _BITS:
        if stored is not None:
            raise ModelError(f"quantization: the weights in {folder.path} are quantized already; take auto")
        if not has_kernel(device):
            raise ModelError(f"quantization: {quantization} needs a CPU with AVX2 instructions")
        rounded = Rounded(_BITS[quantization], plain)
        log.info("weights are rounded to %s", quantization)
        return lambda _layer, _names: rounded
    if stored is None:
        return lambda _layer, _names: plain
    is_kept = quantization == "auto" and has_kernel(device)
    log.info("weights are %s", "multiplied as they are stored" if is_kept else "converted to plain numbers")

    def choice(layer: Linear, names: Sequence[str]) -> LinearMethod:
        schemes = {name: stored.scheme(name) for name in map(_in_checkpoint, names) if layer.tied is None}
        formats = {name: format_of(scheme) for name, scheme in schemes.items() if scheme is not None}
        if formats and len(formats) < len(schemes):
            raise ModelError(f"{', '.join(names)} are one layer here, and only some of them are quantized")
        return Stored(formats, plain, is_kept) if formats else plain

    return choice


def _in_checkpoint(name: str) -> str:
    """A layer's whole name: all but the last layer are in a part called "model"."""
    return name if name == "lm_head" else f"model.{name}"


def _plain_method(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> LinearMethod:
    # In float32 the reordered form is faster from about eight rows on. An encoder has as many, a decode has not.
    is_faster = folder.encoder is not None if dtype is torch.float32 else dtype is torch.bfloat16 and has_bfloat16()
    return OneDnn() if device.type == "cpu" and is_faster else PLAIN


def _stored(folder: ModelFolder) -> Quantization | None:
    if folder.quantization is None:
        return None
    try:
        return parse_quantization(folder.quantization)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder.path / 'config.json'}: quantization_config: {reason}") from error
