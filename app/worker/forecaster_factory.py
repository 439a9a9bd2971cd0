"""Building a forecaster's worker from settings."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from ..checkpoint.folder import ModelFolder
from ..checkpoint.forecasters import ForecasterConfig
from ..core.media import Media
from ..core.request import Extras
from ..core.sampling import SamplingParams
from ..core.step import BuiltWorker, NewRequest
from ..errors import ModelError, StartupError
from ..layers.methods import choose
from ..models.stored import load_pretrained
from ..models.weights import refuse_unmatched
from ..settings import Settings
from .forecaster import Forecaster
from .predictive_runner import PredictiveRunner
from .resolve import resolve

_TOKENS = 4096
"""Of a step, unless settings say something else."""
_LONGEST_QUOTE = 200
"""Characters of a library's error that are shown."""
_TOLERANCE = 1e-3
"""The difference that the trial allows, relative to the largest number."""


def build_forecaster(settings: Settings, path: Path, config: ForecasterConfig) -> BuiltWorker:
    """Load the forecaster in a folder. It computes in float32: a series' numbers have more than 8 or 11 bits.

    Raises StartupError.
    """
    _refuse(settings, path)
    try:
        config = config.limited_to(settings.max_model_len or config.max_len)
    except ValueError as error:
        raise StartupError(str(error)) from None
    folder, began = ModelFolder.open(path), time.monotonic()
    resolved = resolve(settings.model_copy(update={"dtype": "float32", "max_model_len": config.max_len}), folder)
    try:
        model = _load(folder, resolved.device)
        runner = PredictiveRunner(Forecaster(model, config, resolved.device))
        _try(runner, config)
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_QUOTE]}"
        raise ModelError(f"{path} does not run as a forecaster: {reason}") from error
    max_tokens = max(config.max_len, settings.max_num_batched_tokens or _TOKENS)
    limits = replace(
        resolved.limits,
        max_model_len=config.max_len,
        max_num_batched_tokens=max_tokens,
        max_num_seqs=min(settings.max_num_seqs or _TOKENS, max_tokens),
        chunked_prefill=False,
    )
    return BuiltWorker(
        worker=runner,
        limits=limits,
        architecture=folder.architecture,
        model_impl="transformers",
        device=str(resolved.device),
        dtype="float32",
        vocab_size=0,
        startup_seconds={"load_weights": time.monotonic() - began},
    )


def _refuse(settings: Settings, path: Path) -> None:
    """StartupError for settings that would change what a forecaster computes."""
    if settings.batch_invariant:
        raise ModelError(f"batch_invariant: models that generate can be, and the model in {path} forecasts")
    if settings.dtype not in ("auto", "float32"):
        raise StartupError(f"dtype: a model that forecasts computes in float32, not {settings.dtype}")
    if settings.quantization not in ("auto", "none"):
        raise StartupError("quantization: a model that forecasts keeps its weights as plain numbers")


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
    short, long = (_request(config.trial(length)) for length in (config.patch, config.context))
    (alone,), (beside, _) = runner.predict([short]), runner.predict([short, long])
    expected, found = np.frombuffer(alone, np.float32), np.frombuffer(beside, np.float32)
    numbers = len(config.targets) * config.horizon * config.numbers
    if len(found) != numbers:
        raise ModelError(f"it gives {len(found)} numbers where its files say {numbers}")
    if not np.allclose(found, expected, rtol=0, atol=_TOLERANCE * np.abs(expected).max()):
        raise ModelError("it gives a series another forecast beside a longer one")


def _request(media: Media) -> NewRequest:
    return NewRequest(
        row=0,
        token_ids=[0] * media.num_tokens,
        num_prompt_tokens=media.num_tokens,
        block_ids=[],
        sampling=SamplingParams(max_tokens=0, seed=0),
        extras=Extras(media=media),
    )
