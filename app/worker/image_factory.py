"""Building the worker of a model of images from settings."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from msgspec.structs import replace
from transformers import AutoConfig

from ..checkpoint.folder import ModelFolder
from ..checkpoint.image_models import ImageModelConfig
from ..core.media import Array, Media
from ..core.step import BuiltWorker
from ..errors import ModelError, StartupError, quoted
from ..layers.methods import choose
from ..models.stored import load_pretrained
from ..models.weights import refuse_unmatched
from ..settings import Settings
from .image_reader import ImageReader
from .predictive_runner import PredictiveRunner
from .predictor_parts import built_of, refuse_settings, request_of
from .resolve import resolve

_TOLERANCE = 0.05
"""The difference that the trial allows, relative to the largest number: several times bfloat16's rounding."""


def build_image_model(settings: Settings, path: Path, config: ImageModelConfig) -> BuiltWorker:
    """Load the model of images in a folder. Raises StartupError."""
    refuse_settings(settings, "reads images")
    if settings.max_model_len:
        raise StartupError("max_model_len: a model that reads images has its own")
    folder, began = ModelFolder.open(path), time.monotonic()
    resolved = resolve(settings, folder)
    try:
        model = _load(folder, config, resolved.device, resolved.dtype)
        runner = PredictiveRunner(ImageReader(model, config, resolved.device))
        _try(runner, config)
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{path} does not run as a model of images: {quoted(error)}") from error
    return built_of(settings, folder, resolved, runner, config.max_len, began)


def _load(folder: ModelFolder, config: ImageModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' model, with every tensor of the checkpoint in it."""
    if folder.quantization is not None:
        raise ModelError(f"{folder.path}: quantized weights of a {folder.model_type} are not supported")
    shape = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    kind = getattr(transformers, folder.architecture)
    model, info = load_pretrained(kind, folder, choose(folder, device, dtype, "none"), shape, dtype)
    if (
        config.task == "embed"
        and not config.compares
        and any(key.startswith("pooler.") for key in info["missing_keys"])
    ):
        model.pooler = None  # it was not trained: the first token stands for the image
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    refuse_unmatched(folder, info)
    return model.to(device).eval().requires_grad_(False)


def _try(runner: PredictiveRunner, config: ImageModelConfig) -> None:
    """Read an image alone and beside another one."""
    one, other = config.trial(), _noise(config.trial())
    (alone,), (beside, _) = runner.predict([request_of(one)]), runner.predict([request_of(one), request_of(other)])
    expected, found = np.frombuffer(alone, np.float32), np.frombuffer(beside, np.float32)
    if config.task == "classify" and len(found) != len(config.labels):
        raise ModelError(f"it gives {len(found)} logits for {len(config.labels)} labels")
    if not np.allclose(found, expected, rtol=0, atol=_TOLERANCE * np.abs(expected).max()):
        raise ModelError("it gives an image other numbers beside another one")
    if config.compares:
        runner.predict([request_of(config.text([0] * length)) for length in (2, config.max_text_len)])


def _noise(media: Media) -> Media:
    pixels = media.arrays["pixel_values"].numpy()
    noise = np.random.default_rng(0).standard_normal(pixels.shape).astype(np.float32)
    return replace(media, arrays=media.arrays | {"pixel_values": Array.of(noise)})
