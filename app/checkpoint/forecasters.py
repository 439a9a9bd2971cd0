"""What the files of a model that forecasts say, and how it wants a series of numbers."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from ..core.media import Array, Media
from ..core.wire import Task
from .sentence_transformers import Read

Frequency = Literal[0, 1, 2]
"""TimesFM 2.0's: up to daily values, weekly or monthly ones, and rarer ones."""
Family = Literal["patchtst", "patchtsmixer", "timesfm", "timesfm2_5"]

_ARCHITECTURES: dict[str, Family] = {
    "PatchTSTForPrediction": "patchtst",
    "PatchTSMixerForPrediction": "patchtsmixer",
    "TimesFmModelForPrediction": "timesfm",
    "TimesFm2_5ModelForPrediction": "timesfm2_5",
}
_DECILES = [number / 10 for number in range(1, 10)]
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "patchtst": {
        "num_input_channels": 1,
        "context_length": 32,
        "patch_length": 1,
        "patch_stride": 1,
        "prediction_length": 24,
    },
    "patchtsmixer": {
        "num_input_channels": 1,
        "context_length": 32,
        "patch_length": 8,
        "patch_stride": 8,
        "prediction_length": 16,
    },
    "timesfm": {"context_length": 512, "patch_length": 32, "horizon_length": 128, "quantiles": _DECILES},
    "timesfm2_5": {"context_length": 16384, "patch_length": 32, "horizon_length": 128, "quantiles": _DECILES},
}
"""transformers' values of what config.json may leave out."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ForecasterConfig:
    """A model that reads series of numbers, and says how they go on.

    Its tokens are patches: some values in a row, of one channel.
    """

    family: Family
    channels: int
    """Of a series that it reads: how many numbers belong to a moment."""
    targets: tuple[int, ...]
    """The channels that it forecasts."""
    context: int
    """The last values of a series that it reads, at most."""
    patch: int
    """Values of a token."""
    max_len: int
    """The most tokens of a series."""
    horizon: int
    """Moments that one pass forecasts."""
    max_horizon: int
    """Moments that several passes may forecast, each reading what those before it have said."""
    quantiles: tuple[float, ...] = ()
    """Those that it forecasts, ascending; none if it says only one number for a moment."""
    stays_positive: bool = False
    """Whether a series without negative numbers goes on without them."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do."""
        return ("forecast",)

    @property
    def has_fixed_size(self) -> bool:
        """Whether it reads its whole context in any case, padded in front of a shorter series."""
        return self.family != "timesfm"

    @property
    def numbers(self) -> int:
        """How many numbers it says for a moment: the mean, and then the quantiles."""
        return 1 + len(self.quantiles)

    def limited_to(self, max_len: int) -> Self:
        """The same model, reading so many tokens of a series at most. Raises ValueError if it can only read all."""
        if max_len == self.max_len:
            return self
        if not self.family.startswith("timesfm") or max_len > self.max_len:
            raise ValueError(f"max_model_len: this model reads {self.max_len} patches")
        return replace(self, max_len=max_len, context=max_len * self.patch)

    def prepare(self, values: NDArray[np.float64], horizon: int, frequency: Frequency = 0) -> Media:
        """A series (channels, values), NaN where there are gaps, as the model's `Reader` wants it.

        TimesFM reads no gaps. As its authors do, those in front are cut off, and others are filled on a straight line.
        Raises ValueError for a channel without a number, and for numbers beyond float32.
        """
        is_there = ~np.isnan(values)
        if not is_there.any(1).all():
            raise ValueError("must have a number in each channel")
        check_float32(values[is_there])
        if self.family.startswith("timesfm"):
            values = _without_gaps(values[0])[None]
        values = values[:, -self.context :]
        data = np.ascontiguousarray(values.T, np.float32)  # (values, channels)
        numbers = {"values": data, "horizon": np.array(horizon), "frequency": np.array(frequency)}
        arrays = {name: Array.of(array) for name, array in numbers.items()}
        digest = hashlib.blake2b(b"".join(array.data for array in arrays.values()), digest_size=16).digest()
        num_tokens = self.max_len if self.has_fixed_size else -(-len(data) // self.patch)
        return Media(digest, arrays, num_tokens)

    def trial(self, length: int) -> Media:
        """A series to try the model with."""
        values = np.sin(np.arange(self.channels * length, dtype=np.float64)).reshape(self.channels, length)
        return self.prepare(values, self.horizon)


def check_float32(numbers: NDArray[np.float64]) -> None:
    """Raise ValueError for numbers beyond float32, of which there are some."""
    if np.abs(numbers).max() > _LARGEST:
        raise ValueError(f"numbers are at most {_LARGEST:.2e}")


def _without_gaps(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The series from its first number on, with gaps filled by linear interpolation, and by its last number."""
    (places,) = np.nonzero(~np.isnan(values))
    return np.interp(np.arange(places[0], len(values)), places, values[places])


def parse_forecaster(read: Read) -> ForecasterConfig | None:
    """What a forecaster's config.json says; None for any other model. Raises ValueError for what is not supported."""
    raw = read("config.json") or {}
    names = raw.get("architectures")
    if "chronos_config" in raw:  # a T5 of it is an encoder-decoder, and others would run as what they are not
        raise ValueError(f"{names}: of Chronos, only T5ForConditionalGeneration is supported")
    if not isinstance(names, list) or not names or (family := _ARCHITECTURES.get(str(names[0]))) is None:
        return None
    known = _DEFAULTS[family] | raw
    sizes = {key: known[key] for key in _DEFAULTS[family] if key != "quantiles"}
    if wrong := [key for key, value in sizes.items() if type(value) is not int or value < 1]:
        raise ValueError(f"config.json: {wrong[0]} is {sizes[wrong[0]]!r}")
    if family in ("patchtst", "patchtsmixer"):
        return _of_patches(family, known)
    quantiles = tuple(float(quantile) for quantile in known["quantiles"])
    context, patch, horizon = known["context_length"], known["patch_length"], known["horizon_length"]
    is_first = family == "timesfm"
    if context % patch:
        raise ValueError(f"config.json: context_length {context} is not a multiple of patch_length {patch}")
    return ForecasterConfig(
        family,
        channels=1,
        targets=(0,),
        context=context,
        patch=patch,
        max_len=context // patch,
        horizon=horizon,
        # Version 2.5's authors also go on in several passes, but with a state that transformers' model does not have.
        max_horizon=max(horizon, context) if is_first else horizon,
        quantiles=quantiles,
        stays_positive=not is_first and known.get("infer_is_positive", True) is True,
    )


def _of_patches(family: Family, known: dict[str, Any]) -> ForecasterConfig:
    if known.get("loss", "mse") != "mse":
        raise ValueError("config.json: a forecaster with the loss nll, which forecasts distributions, is not supported")
    channels, context, patch = known["num_input_channels"], known["context_length"], known["patch_length"]
    num_patches = (max(context, patch) - patch) // known["patch_stride"] + 1
    targets = known.get("prediction_channel_indices")
    return ForecasterConfig(
        family,
        channels=channels,
        targets=tuple(range(channels)) if targets is None else tuple(sorted(cast(list[int], targets))),
        context=context,
        patch=patch,
        max_len=num_patches * channels,
        horizon=known["prediction_length"],
        max_horizon=known["prediction_length"],
    )
