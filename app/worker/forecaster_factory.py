"""Building a forecaster's worker from settings."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from ..checkpoint.folder import ModelFolder
from ..checkpoint.forecasters import ForecasterConfig
from ..core.step import BuiltWorker
from ..errors import ModelError, StartupError, quoted
from ..layers.methods import choose
from ..models.stored import load_pretrained
from ..models.weights import refuse_unmatched
from ..settings import Settings
from .forecaster import Forecaster
from .predictive_runner import PredictiveRunner
from .predictor_parts import built_of, refuse_settings, request_of
from .resolve import resolve

_TOLERANCE = 1e-3
"""The difference that the trial allows, relative to the largest number."""


def build_forecaster(settings: Settings, path: Path, config: ForecasterConfig) -> BuiltWorker:
    """Load the forecaster in a folder. It computes in float32: a series' numbers have more than 8 or 11 bits.

    Raises StartupError.
    """
    refuse_settings(settings, "forecasts")
    if settings.dtype not in ("auto", "float32"):
        raise StartupError(f"dtype: a model that forecasts computes in float32, not {settings.dtype}")
    try:
        config = config.limited_to(settings.max_model_len or config.max_len)
    except ValueError as error:
        raise StartupError(str(error)) from None
    folder, began = ModelFolder.open(path), time.monotonic()
    resolved = resolve(settings.model_copy(update={"dtype": "float32", "max_model_len": None}), folder)
    try:
        model = _load(folder, resolved.device)
        runner = PredictiveRunner(Forecaster(model, config, resolved.device))
        _try(runner, config)
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{path} does not run as a forecaster: {quoted(error)}") from error
    return built_of(settings, folder, resolved, runner, config.max_len, began)


def _load(folder: ModelFolder, device: torch.device) -> Any:
    if folder.quantization is not None:
        raise ModelError(f"{folder.path}: quantized weights of a {folder.model_type} are not supported")
    shape = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    kind = getattr(transformers, folder.architecture)
    methods = choose(folder, device, torch.float32, "none")
    model, info = load_pretrained(kind, folder, methods, shape, torch.float32)
    refuse_unmatched(folder, info)
    return model.to(device).eval().requires_grad_(False)


def _try(runner: PredictiveRunner, config: ForecasterConfig) -> None:
    """Forecast a short series alone, and beside one that fills the context."""
    short, long = (request_of(config.trial(length)) for length in (config.patch, config.context))
    (alone,), (beside, _) = runner.predict([short]), runner.predict([short, long])
    expected, found = np.frombuffer(alone, np.float32), np.frombuffer(beside, np.float32)
    numbers = len(config.targets) * config.horizon * config.numbers
    if len(found) != numbers:
        raise ModelError(f"it gives {len(found)} numbers where its files say {numbers}")
    if not np.allclose(found, expected, rtol=0, atol=_TOLERANCE * np.abs(expected).max()):
        raise ModelError("it gives a series another forecast beside a longer one")
