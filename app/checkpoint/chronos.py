"""Chronos: a T5 whose tokens stand for numbers (Ansari et al., 2024, Chronos: Learning the Language of Time Series).

A series is divided by the mean of its absolute numbers, and each number becomes the token of the range that it is in.
What the decoder writes are tokens of the same kind. As in amazon-science/chronos-forecasting, MeanScaleUniformBins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.media import Media
from ..core.sources import text_source
from .forecasters import check_float32

Floats = NDArray[np.float64]
_SIZES = ["context_length", "prediction_length", "n_tokens", "n_special_tokens", "num_samples"]
_TOKENS = ["pad_token_id", "eos_token_id", "top_k"]


class Scaled(NamedTuple):
    """A series as the encoder reads it."""

    source: Media
    scale: float
    """What its numbers were divided by."""


@dataclass(frozen=True)
class SeriesTokens:
    """Which numbers the tokens stand for, and how paths of them are drawn."""

    low: float
    high: float
    """The numbers of the first and of the last token, of a series whose mean absolute number is 1."""
    context: int
    """The last numbers of a series that are read, at most."""
    horizon: int
    """How many numbers a path has at once."""
    num_tokens: int
    num_special: int
    """Tokens in front that stand for no number."""
    padding: int
    """Stands where a number is missing."""
    end: int
    ends: bool
    """Whether the encoder reads `end` behind a series."""
    num_samples: int
    """Paths of a forecast, unless a request says another number."""
    temperature: float
    top_k: int
    top_p: float

    @cached_property
    def centers(self) -> Floats:
        """(ranges,): the number in the middle of each range, ascending."""
        return np.linspace(self.low, self.high, self.num_tokens - self.num_special - 1)

    @cached_property
    def _edges(self) -> Floats:
        """(ranges + 1,): where a range begins; each is open to the right."""
        return np.concatenate(([-1e20], (self.centers[1:] + self.centers[:-1]) / 2, [1e20]))

    def source(self, values: Floats) -> Scaled:
        """A series (values,), NaN where one is missing. Positions of missing numbers stay, and nothing sees them.

        Raises ValueError if no number is among those that are read, or one is beyond float32.
        """
        values = values[-self.context :]
        is_there = ~np.isnan(values)
        if not is_there.any():
            raise ValueError(f"must have a number among its last {self.context}")
        first = int(is_there.argmax())  # tokens only know how far they are from others, so these change nothing
        values, is_there = values[first:], is_there[first:]
        check_float32(values[is_there])
        scale = float(np.abs(values[is_there]).mean()) or 1.0
        tokens = np.full(len(values), self.padding)
        places = np.searchsorted(self._edges, values[is_there] / scale, side="right") + self.num_special
        tokens[is_there] = places.clip(0, self.num_tokens - 1)
        ids, seen = tokens.tolist(), is_there.tolist()
        return Scaled(text_source(ids + [self.end] * self.ends, seen + [True] * self.ends), scale)

    def values(self, tokens: NDArray[np.int64], scale: float) -> Floats:
        """The numbers of tokens of any shape."""
        places = (tokens - self.num_special - 1).clip(0, len(self.centers) - 1)
        numbers: Floats = self.centers[places] * scale
        return numbers


def parse_series_tokens(config: Mapping[str, Any]) -> SeriesTokens | None:
    """What config.json says of them; None if the model is no Chronos. Raises ValueError for what is not supported."""
    told = config.get("chronos_config")
    if told is None:
        return None
    if (kind := told.get("tokenizer_class")) != "MeanScaleUniformBins":
        raise ValueError(f"chronos_config: the tokenizer_class {kind} is not supported")
    if (kind := told.get("model_type")) != "seq2seq":
        raise ValueError(f"chronos_config: the model_type {kind} is not supported")
    for name in (*_SIZES, *_TOKENS):
        if type(told.get(name)) is not int or told[name] < (name in _SIZES):
            raise ValueError(f"chronos_config: {name} is {told.get(name)!r}")
    num_ranges = told["n_tokens"] - told["n_special_tokens"] - 1
    low, high = (float(told["tokenizer_kwargs"][name]) for name in ("low_limit", "high_limit"))
    if num_ranges < 1 or told["n_tokens"] > config["vocab_size"] or not low < high:
        raise ValueError("chronos_config: n_tokens, n_special_tokens, low_limit or high_limit makes no sense")
    return SeriesTokens(
        low=low,
        high=high,
        context=told["context_length"],
        horizon=told["prediction_length"],
        num_tokens=told["n_tokens"],
        num_special=told["n_special_tokens"],
        padding=told["pad_token_id"],
        end=told["eos_token_id"],
        ends=told["use_eos_token"] is True,
        num_samples=told["num_samples"],
        temperature=float(told["temperature"]),
        top_k=told["top_k"],
        top_p=float(told["top_p"]),
    )
