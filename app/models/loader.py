"""From a folder with a checkpoint to a model that is ready to run."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from app.attention.layer import Attention
from app.checkpoint.families import FAMILIES, NotCarriedError, parse_decoder_config
from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.layers.linear import Linear, MergedLinear
from app.models.decoder import Decoder
from app.settings import ModelSettings

log = logging.getLogger(__name__)

_READERS = 8
_PIECE = 64 * 2**20
"""Bytes of a tensor that are loaded at once."""
_SAY_EVERY = 2.0
"""Seconds between two lines about the progress of loading."""
_PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Merged layers, and the layers of a checkpoint that they merge."""


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and its attention layers in order."""

    model: nn.Module
    """With `forward` and `compute_logits` as `Decoder` has them."""
    impl: str
    vocab_size: int
    attention_layers: list[Attention]


def load_model(
    folder: ModelFolder, settings: ModelSettings, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> LoadedModel:
    """Load a checkpoint with the hand-written decoder if it can run it, else through transformers.

    Raises ModelError for what cannot be loaded.
    """
    model: Any = None
    if settings.model_impl != "generic":
        model = _try_decoder(folder, settings, dtype, device, max_model_len)
    used = "decoder" if model is not None else "generic"
    if model is None:
        # transformers takes seconds to import: only those who need it pay.
        from app.models.generic import load_generic

        if settings.load_format == "dummy":
            raise ModelError(
                f"load_format: dummy weights are for the decoder, which does not run {folder.architecture}"
            )
        model = load_generic(folder, dtype, device)
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Linear):
                module.pack()
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    return LoadedModel(model.eval().requires_grad_(False), used, model.vocab_size, layers)


def _try_decoder(
    folder: ModelFolder, settings: ModelSettings, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> Decoder | None:
    impl = settings.model_impl
    kind = folder.model_type
    if kind not in FAMILIES or not folder.architecture.endswith("ForCausalLM"):
        if impl == "decoder":
            raise ModelError(f"the decoder does not know {folder.architecture} ({kind}); try --model-impl generic")
        return None
    try:
        config = parse_decoder_config(folder.config)
        with torch.device(device), _default_dtype(dtype):
            model = Decoder(config, max_model_len)
    except NotCarriedError as reason:
        if impl == "decoder":
            raise ModelError(f"the decoder does not carry {reason}; try --model-impl generic") from None
        log.info("using transformers' model: the decoder does not carry %s", reason)
        return None
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        reason_text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise folder.unusable(reason_text) from error
    if settings.load_format == "dummy":
        _fill_with_noise(model)
    else:
        _load_weights(model, folder)
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


@torch.no_grad()
def _fill_with_noise(model: Decoder) -> None:
    """Weights as a model has them before training, so that what it computes are ordinary numbers."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0)


class _Piece(NamedTuple):
    """Some rows of a tensor in a file, and the memory that they fill."""

    file: Path
    name: str
    rows: slice
    target: Tensor

    def load(self) -> None:
        with _reading(self.file) as tensors:
            part = tensors.get_slice(self.name)[self.rows] if self.target.dim() else tensors.get_tensor(self.name)
        if self.target.is_cuda:
            part = part.pin_memory()  # the GPU fetches it by itself
        self.target.copy_(part, non_blocking=True)


def _load_weights(model: Decoder, folder: ModelFolder) -> None:
    """Fill every parameter from the folder's safetensors files; ModelError names what is missing or does not fit."""
    path, targets = folder.path, _targets(model)
    found: dict[str, list[_Piece]] = {}
    for file in folder.weight_files:
        with _reading(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                key = name.removeprefix("model.")
                if key == "lm_head.weight" and model.config.tie_word_embeddings:
                    key = "embed_tokens.weight"
                if key.endswith("rotary_emb.inv_freq"):  # old checkpoints have it, but it follows from config.json
                    continue
                if key not in targets:
                    raise ModelError(f"{path} has a tensor that the model does not: {name}")
                shape = tuple(tensors.get_slice(name).get_shape())
                if targets[key].shape != shape:
                    raise ModelError(f"{path}: {name} has shape {shape}, not {tuple(targets[key].shape)}")
                found[key] = _pieces(file, name, targets[key])
    if missing := sorted(targets.keys() - found.keys()):
        raise ModelError(f"{path} lacks {len(missing)} tensors of the model, {missing[0]} for one")
    _load_pieces([piece for pieces in found.values() for piece in pieces])


def _pieces(file: Path, name: str, target: Tensor) -> list[_Piece]:
    """A tensor in parts of at most _PIECE bytes, as far as its rows allow."""
    if not target.dim():
        return [_Piece(file, name, slice(0), target)]
    rows = max(1, _PIECE * len(target) // max(1, target.nbytes))
    return [
        _Piece(file, name, slice(start, min(start + rows, len(target))), target[start : start + rows])
        for start in range(0, len(target), rows)
    ]


def _load_pieces(pieces: list[_Piece]) -> None:
    """Several at once: reading a file, copying it and sending it to a GPU are each done by somebody else."""
    last_said, done, total = time.monotonic(), 0, sum(piece.target.nbytes for piece in pieces)
    with ThreadPoolExecutor(_READERS) as pool:
        for piece, _ in zip(pieces, pool.map(_Piece.load, pieces), strict=True):
            done += piece.target.nbytes
            if time.monotonic() - last_said > _SAY_EVERY:
                last_said = time.monotonic()
                log.info("loading weights: %.1f of %.1f GiB", done / 2**30, total / 2**30)
    if any(piece.target.is_cuda for piece in pieces):
        torch.cuda.synchronize()


def _targets(model: Decoder) -> dict[str, Tensor]:
    """A checkpoint's tensor name, less "model.", to the memory that it fills; all names that would do."""
    targets: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        parent, _, own_name = module_name.rpartition(".")
        for kind, parameter in module.named_parameters(recurse=False):
            if module is model.lm_head and model.config.tie_word_embeddings:
                continue
            if isinstance(module, MergedLinear) and not model.config.merged_in_checkpoint:
                for index, part in enumerate(_PARTS[own_name]):
                    targets[f"{parent}.{part}.{kind}"] = module.part(kind, index)
            else:
                targets[f"{module_name}.{kind}"] = parameter.data
    return targets


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped: pages are read as they are copied. ModelError if it is broken."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
