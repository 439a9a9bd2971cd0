"""The answer to a forecast."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from ..edge.answer import AnswerBody
from ..encoders.answer import EncoderUsage

Numbers = list[float | list[float]]
"""As many as the horizon says; lists of them, one for each channel, if the series had channels."""


class Forecast(AnswerBody, kw_only=True):
    """How a series goes on. The numbers are in the series' own unit."""

    object: Literal["forecast"] = "forecast"
    index: int
    mean: Numbers
    median: Numbers | UnsetType = UNSET
    """Of a model that forecasts quantiles."""
    quantiles: dict[str, Numbers]
    """By the quantile, such as 0.1: the number that the series is below with this probability."""


class Forecasts(AnswerBody, kw_only=True):
    """A forecast for each series."""

    object: Literal["list"] = "list"
    data: list[Forecast]
    model: str
    usage: EncoderUsage


def forecast_of(
    index: int,
    numbers: NDArray[np.floating[Any]],
    known: Sequence[float],
    quantiles: Sequence[float],
    has_channels: bool,
) -> Forecast:
    """Numbers (channels, moments, 1 + quantiles), the mean and then the known quantiles, as an answer."""
    kept = numbers if has_channels else numbers[0]

    def number(at: int) -> Any:
        return kept[..., at].tolist()

    by_quantile = {quantile: 1 + at for at, quantile in enumerate(known)}
    return Forecast(
        index=index,
        mean=number(0),
        median=number(by_quantile[0.5]) if 0.5 in by_quantile else UNSET,
        quantiles={str(quantile): number(by_quantile[quantile]) for quantile in quantiles},
    )
