"""The methods of linear layers, each in a file of its own, and the choice between them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...checkpoint.folder import ModelFolder
from ...checkpoint.quantization import Quantization, has_four_bits, parse_quantization
from ...errors import ModelError
from ..formats import format_of
from ..formats.base import Weight
from ..formats.codes import GROUP, Codes, quantize
from ..formats.float8 import Float8Weight
from ..formats.float8 import quantize as to_float8
from ..linear import Choice, Head, Linear, LinearMethod
from ..moe import Stacked
from . import float8, integer, integer_gpu, invariant, mxfp4
from .mxfp4 import Mxfp4
from .onednn import OneDnn, has_bfloat16
from .plain import PLAIN
from .quantized import Keeper, Rounded, Rounder, Stored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Methods:
    """The methods for a model's linear layers."""

    plain: LinearMethod
    """Of layers whose weights are plain numbers in the checkpoint."""
    quantization: Quantization | None
    """How the others are stored; None if there are none."""
    _keep: Keeper
    _like: Tensor
    _keeps_mxfp4: bool = False
    """Whether experts in MXFP4 are multiplied as they are."""

    def choice(self, layer: Linear, names: Sequence[str]) -> LinearMethod:
        """See `Choice`, for names without the prefix "model."."""
        full_names = [_in_checkpoint(name) for name in names]
        if isinstance(layer, Stacked) and self._are_mxfp4(full_names):
            return Mxfp4(self.plain, self._like, self._keeps_mxfp4)
        method = self.stored(full_names) if layer.tied is None else None
        return method or self.plain

    def _are_mxfp4(self, names: Sequence[str]) -> bool:
        schemes = [self.quantization.scheme(name) for name in names] if self.quantization else []
        return any(scheme is not None and scheme.kind == "mxfp4" for scheme in schemes)

    def stored(self, names: Sequence[str]) -> Stored | None:
        """Of a layer that a checkpoint has as quantized layers of these names; None if they are not quantized."""
        schemes = {name: self.quantization.scheme(name) for name in names} if self.quantization else {}
        formats = {name: format_of(scheme) for name, scheme in schemes.items() if scheme is not None}
        if formats and len(formats) < len(schemes):
            raise ModelError(f"{', '.join(names)} are one layer here, and only some of them are quantized")
        return Stored(formats, self.plain, self._keep, self._like) if formats else None


def choose(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, quantization: str, batch_invariant: bool = False
) -> Methods:
    """The methods for the layers of a model in a folder. ModelError names what is not supported.

    `batch_invariant`: of methods for the same weights, those that are; not all have a twin that is.
    """
    plain, stored = _plain_method(folder, device, dtype, batch_invariant), _stored(folder)
    like = torch.empty(0, dtype=dtype, device=device)
    if quantization in _ROUNDERS:
        if stored is not None:
            raise ModelError(f"quantization: the weights in {folder.path} are quantized already; take auto")
        to, kind, needs = _ROUNDERS[quantization]
        if (keep_rounded := _keepers(device, dtype, batch_invariant).get(kind)) is None:
            raise ModelError(f"quantization: {quantization} needs {needs}")
        log.info("weights are rounded to %s", quantization)
        return Methods(Rounded(to, keep_rounded, plain, device), None, keep_rounded, like)
    keepers = _keepers(device, dtype, batch_invariant) if quantization == "auto" else {}

    def keep(layer: Linear, pieces: Sequence[Weight]) -> LinearMethod | None:
        kept_by = keepers.get(type(pieces[0]))
        return kept_by(layer, pieces) if kept_by else None

    keeps_mxfp4 = quantization == "auto" and mxfp4.has_kernel(device, dtype)
    if stored is not None and (folder.quantization or {}).get("quant_method") == "mxfp4":
        log.info("experts in MXFP4 are %s", "multiplied as they are" if keeps_mxfp4 else "converted to plain numbers")
    elif stored is not None:
        log.info("weights are %s", _what_becomes_of(keepers))
    return Methods(plain, stored, keep, like, keeps_mxfp4)


def in_eight_bits(device: torch.device, dtype: torch.dtype) -> Choice:
    """All layers rounded to 8 bits where there is a kernel for that, for what may be a little less exact."""
    keep_rounded = _keepers(device, dtype, batch_invariant=False).get(Codes)
    method = Rounded(_to_codes(8), keep_rounded, PLAIN, device) if keep_rounded else PLAIN
    return lambda _layer, _names: method


def _keepers(device: torch.device, dtype: torch.dtype, batch_invariant: bool) -> dict[type, Keeper]:
    """What multiplies quantized weights as they are on a device, for activations of a dtype, by their form."""
    keepers: dict[type, Keeper] = {}
    if integer.has_kernel(device, dtype):
        keepers[Codes] = integer.keep
    if integer_gpu.has_kernel(device, dtype):
        keepers[Codes] = partial(integer_gpu.keep, is_batch_invariant=batch_invariant)
    if float8.has_kernel(device):
        keepers[Float8Weight] = partial(float8.keep, is_batch_invariant=batch_invariant)
    return keepers


def _what_becomes_of(keepers: Mapping[type, Keeper]) -> str:
    if not keepers:
        return "converted to plain numbers"
    kinds = " and ".join({Codes: "codes", Float8Weight: "FP8"}[kind] for kind in keepers)
    return f"multiplied as they are stored, if they are {kinds}, else converted to plain numbers"


def _to_codes(bits: int) -> Rounder:
    """The last layer always has 8 bits: with 4, small models choose other words."""

    def to(layer: Linear) -> Codes:
        size, weight = layer.in_features, layer.weight.data
        group, stored = (integer_gpu.GROUP, torch.float16) if weight.is_cuda else (GROUP, None)
        group = group if size % group == 0 else size
        return quantize(weight, 8 if isinstance(layer, Head) else bits, group, stored)

    return to


def _to_float8(layer: Linear) -> Float8Weight | None:
    """The last layer stays as it is."""
    return None if isinstance(layer, Head) else to_float8(layer.weight.data)


_NEEDS_OF_CODES = (
    "a CPU with AVX2 instructions, and bfloat16 or float32, or a GPU of compute capability 8.0 or more, and bfloat16 "
    "or float16"
)
_ROUNDERS: dict[str, tuple[Rounder, type, str]] = {
    "int8": (_to_codes(8), Codes, _NEEDS_OF_CODES),
    "int4": (_to_codes(4), Codes, _NEEDS_OF_CODES),
    "fp8": (_to_float8, Float8Weight, "a GPU of compute capability 8.9 or more"),
}
"""What `quantization` rounds to, the form that this is, and what it needs."""


def _in_checkpoint(name: str) -> str:
    """A layer's whole name: all but the last layer are in a part called "model"."""
    return name if name == "lm_head" else f"model.{name}"


def _plain_method(folder: ModelFolder, device: torch.device, dtype: torch.dtype, batch_invariant: bool) -> LinearMethod:
    if batch_invariant and invariant.has_kernel(device, dtype):
        return invariant.Invariant()
    # In float32 the reordered form is faster from about eight rows on. An encoder has as many, a decode has not.
    is_faster = folder.predictor is not None if dtype is torch.float32 else dtype is torch.bfloat16 and has_bfloat16()
    return OneDnn() if device.type == "cpu" and is_faster else PLAIN


def _stored(folder: ModelFolder) -> Quantization | None:
    if folder.read_as_plain is not None:
        log.info("weights are converted to plain numbers: the tensors of a %s have other names", folder.architecture)
        return None
    if folder.quantization is None or folder.quantization.get("blocks") == {}:  # a GGUF file of plain numbers
        return None
    if has_four_bits(folder.quantization):
        log.info("weights are converted to plain numbers: what bitsandbytes stores in 4 bits is on no grid")
        return None
    return quantization_of(folder, folder.quantization)


def quantization_of(folder: ModelFolder, config: dict[str, Any]) -> Quantization:
    """What a folder's quantization_config says. ModelError for what is not supported."""
    try:
        return parse_quantization(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder.path / 'config.json'}: quantization_config: {reason}") from error
