"""Compares the numbers of predictors that read no text with those of transformers; for `app.check_model`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .checkpoint.folder import ModelFolder
from .checkpoint.forecasters import ForecasterConfig
from .checkpoint.image_models import ImageModelConfig
from .core.media import Array, Media
from .core.wire import PredictCommand
from .engine.core import EngineCore
from .errors import StartupError

MOST_PATCHES = 8
"""Of a series of TimesFM, which can read thousands."""


def forecasts_differ(core: EngineCore, folder: Path, config: ForecasterConfig) -> float:
    """The largest difference of forecasts, relative to their largest number, for series of several lengths at once."""
    model = getattr(transformers, ModelFolder(folder).architecture).from_pretrained(folder, dtype=torch.float32).eval()
    lengths = sorted({1, config.patch, config.context // 2 + 1, config.context})
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((config.channels, length)).cumsum(1) for length in lengths]
    ours = predict(core, [config.prepare(values, config.horizon) for values in series])
    worst = 0.0
    for values, vector in zip(series, ours, strict=True):
        numbers = vector.reshape(len(config.targets), config.horizon, config.numbers)
        worst = max(worst, relative_difference(numbers, _forecast(model, config, values)))
    return worst


@torch.inference_mode()
def _forecast(model: Any, config: ForecasterConfig, values: "np.ndarray[Any, np.dtype[np.float64]]") -> torch.Tensor:
    """(targets, moments, numbers) of one series, by transformers."""
    if config.family.startswith("timesfm"):
        past = [torch.tensor(values[0], dtype=torch.float32)]
        return torch.as_tensor(model(past_values=past, forecast_context_len=config.context).full_predictions)
    shape = (1, config.context, config.channels)
    past_values, observed = torch.zeros(shape), torch.zeros(shape)
    past_values[0, -values.shape[1] :], observed[0, -values.shape[1] :] = torch.tensor(values.T), 1.0
    mask = {"past_observed_mask" if config.family == "patchtst" else "observed_mask": observed}
    return torch.as_tensor(model(past_values=past_values, **mask).prediction_outputs[0].T[..., None])


def images_differ(core: EngineCore, folder: Path, config: ImageModelConfig) -> float:
    """The largest difference of logits or vectors, relative to their largest number, for random images at once."""
    model = getattr(transformers, ModelFolder(folder).architecture).from_pretrained(folder, dtype=torch.float32).eval()
    trial = config.trial().numpy()
    rng = np.random.default_rng(0)
    images = [trial | {"pixel_values": rng.standard_normal(trial["pixel_values"].shape)} for _ in range(3)]
    as_arrays = [{name: Array.of(array.astype(trial[name].dtype)) for name, array in one.items()} for one in images]
    ours = predict(core, [config.image(b"", arrays) for arrays in as_arrays])
    return max(
        relative_difference(vector, _numbers_of(model, config, {n: torch.tensor(a.numpy()) for n, a in one.items()}))
        for vector, one in zip(ours, as_arrays, strict=True)
    )


@torch.inference_mode()
def _numbers_of(model: Any, config: ImageModelConfig, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (labels,) or a vector (dimensions,) of one image, by transformers; with what makes a logit of a cosine."""
    if config.compares:
        vector = model.get_image_features(**inputs).pooler_output[0]
        bias = model.logit_bias.reshape(1) if config.compares == "siglip" else torch.zeros(1)
        return torch.cat([vector, model.logit_scale.exp().reshape(1), bias])
    output = model(**inputs)
    if config.task == "classify":
        return torch.as_tensor(output.logits[0])
    pooled = getattr(output, "pooler_output", None)
    return torch.as_tensor(output.last_hidden_state[0, 0] if pooled is None else pooled[0].flatten())


def predict(core: EngineCore, inputs: Sequence[Media]) -> "list[np.ndarray[Any, np.dtype[np.float32]]]":
    """Paceline's numbers for several inputs, computed at once. Raises StartupError."""
    for index, media in enumerate(inputs):
        core.add(PredictCommand(request_id=f"{index}", media=media, arrived_at=time.monotonic()))
    found: dict[str, bytes] = {}
    while core.has_work:
        for output in core.step().outputs:
            if output.error:
                raise StartupError(output.error)
            found[output.request_id] = output.vector
    return [np.frombuffer(found[f"{index}"], np.float32) for index in range(len(inputs))]


def relative_difference(ours: "np.ndarray[Any, np.dtype[np.float32]]", theirs: torch.Tensor) -> float:
    """The largest difference of two arrays of one shape, relative to the largest number."""
    expected = theirs.numpy()
    return float(np.abs(ours - expected).max() / max(np.abs(expected).max(), 1e-12))
