"""The request of POST /v1/forecast"""

import re
from types import NoneType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, WithJsonSchema

from ...checkpoint.forecasters import Frequency
from ...errors import InvalidRequestError
from ..edge.body import Label, RequestBody
from ..service import Service

_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1}
_SERIES: dict[str, Any] = {"anyOf": [_NUMBERS, {"type": "array", "items": _NUMBERS, "minItems": 1}]}
Series = Annotated[Any, WithJsonSchema(_SERIES)]
"""Checked by hand, since there may be a million numbers."""

_ALIAS = re.compile(r"\d*([A-Za-z]+)(-[A-Z]{3})?")
"""pandas' name of a frequency, such as 15min, or W-SUN."""
_FREQUENCIES: dict[Frequency, str] = {
    0: "N L U S T H B C D ns us ms s min h bh cbh BH CBH",
    1: "W M MS ME BM BMS BME CBMS CBME SM SMS SME",
    2: "Q QS QE BQ BQS BQE A AS BA BAS Y YS YE BY BYS BYE",
}


OF_SAMPLES = ["num_samples", "seed", "temperature", "top_k", "top_p"]
"""Fields for models that draw samples."""


class ForecastRequest(RequestBody):
    """Say how series of numbers go on."""

    model_config = ConfigDict(json_schema_extra={"example": {"series": [[3, 5, 4, 6, None, 7]], "frequency": "D"}})

    hints = frozenset({"user"})
    limit_of_items = "max_numbers"
    model: Label | None = Field(None, description="the served model's name")
    series: list[Series] = Field(
        min_length=1,
        description="lists of numbers, the newest last, null where one is missing; of a model with several channels: "
        "lists of channels, which are such lists of one length",
    )
    horizon: int | None = Field(
        None, ge=1, lt=2**31, description="how many numbers to forecast; what the model does at once by default"
    )
    frequency: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="time between numbers, as pandas names it, such as 15min, D, W, ME, YE; for TimesFM 2.0"
    )
    quantiles: list[float] | None = Field(None, description="those to return; all of the model's by default")
    num_samples: int | None = Field(None, ge=1, lt=2**31, description="of Chronos: paths that are drawn for a series")
    seed: int | None = Field(None, ge=0, lt=2**63, description="of Chronos: the same draws the same paths")
    temperature: float | None = Field(None, ge=0, le=10, description="of Chronos, as are top_k and top_p")
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")

    @property
    def num_numbers(self) -> int:
        """About how many the series have."""
        return sum(len(series) for series in self.series if isinstance(series, list))

    @property
    def frequency_class(self) -> Frequency:
        """The class of TimesFM 2.0's that the frequency belongs to. Raises InvalidRequestError for an unknown one."""
        if self.frequency is None:
            return 0
        match = _ALIAS.fullmatch(self.frequency)
        for kind, names in _FREQUENCIES.items():
            if match and match[1] in names.split():
                return kind
        raise InvalidRequestError(
            f"frequency: {self.frequency!r} is none; 15min, h, D, W, ME, QE and YE are", "frequency"
        )


def check_size(service: Service, body: ForecastRequest, horizon: int, numbers: int) -> None:
    """Raise InvalidRequestError if so many `numbers` for each moment are more than `max_numbers` in all."""
    most, count = service.settings.request_limits.max_numbers, len(body.series) * horizon * numbers
    if count > most:
        what = f"{count} numbers would be forecast, and at most {most} may be (max_numbers)"
        raise InvalidRequestError(f"horizon: {what}", "horizon")


def wrong(index: int, what: str) -> InvalidRequestError:
    """The error for a series."""
    return InvalidRequestError(f"series[{index}]: {what}", f"series[{index}]")


def numbers_of(body: ForecastRequest, index: int, num_channels: int) -> NDArray[np.float64]:
    """A series (channels, values), NaN where a number is missing. InvalidRequestError names what is wrong."""
    channels = channels_of(body.series[index], f"series[{index}]")
    if len(channels) != num_channels:
        raise wrong(index, f"this model reads {num_channels} channels, and the series has {len(channels)}")
    try:
        return np.array(channels, np.float64)
    except (ValueError, OverflowError) as error:
        raise wrong(index, str(error)) from None


def check_finite(index: int, forecast: NDArray[np.floating[Any]]) -> None:
    """Raise InvalidRequestError for a forecast that is none."""
    if not np.isfinite(forecast).all():
        raise wrong(index, "the model has no finite forecast for it; its numbers may be too large")


def channels_of(series: Any, where: str) -> list[list[Any]]:
    """The channels of a series, all of the same length. Raises InvalidRequestError that names what is wrong."""
    if not isinstance(series, list) or not series:
        raise InvalidRequestError(f"{where}: must be a list of numbers, or of channels", where)
    channels = series if isinstance(series[0], list) else [series]
    for index, channel in enumerate(channels):
        place = f"{where}[{index}]" if channels is series else where
        if not isinstance(channel, list) or not channel:
            raise InvalidRequestError(f"{place}: must be a list of numbers, which is not empty", place)
        if not set(map(type, channel)) <= {int, float, NoneType}:
            raise InvalidRequestError(f"{place}: each element must be a number or null", place)
        if len(channel) != len(channels[0]):
            raise InvalidRequestError(f"{where}: all channels must have the same length", where)
    return channels
