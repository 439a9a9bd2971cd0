"""Reads series of numbers: transformers' own forecasters, on batches of series of any lengths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.forecasters import ForecasterConfig
from ..core.step import NewRequest

_MASK = {"patchtst": "past_observed_mask", "patchtsmixer": "observed_mask"}
"""The argument that says which numbers are there."""


class _Series(NamedTuple):
    """What a request brings along."""

    values: Tensor
    """(values, channels), NaN where there are gaps."""
    horizon: int
    frequency: int


class Forecaster:
    """A model that forecasts; see `app.worker.predictive_runner.Reader`.

    Its numbers for a series: (targets, moments, numbers), of which the numbers are the mean, and then the quantiles.
    """

    def __init__(self, model: nn.Module, config: ForecasterConfig, device: torch.device) -> None:
        self.model = model
        self.config = config
        self.device = device

    def read(self, requests: Sequence[NewRequest]) -> list[Tensor]:
        """See the class."""
        series = [self._series(request) for request in requests]
        family = self.config.family
        if family == "timesfm":
            return self._in_passes(series)
        whole = self._by_quantiles(series) if family == "timesfm2_5" else self._by_patches(series)
        return [numbers[:, : one.horizon] for numbers, one in zip(whole, series, strict=True)]

    def _series(self, request: NewRequest) -> _Series:
        assert request.extras.media is not None
        arrays = request.extras.media.numpy()
        values = torch.tensor(arrays["values"], device=self.device)
        return _Series(values, int(arrays["horizon"]), int(arrays["frequency"]))

    def _by_patches(self, series: list[_Series]) -> Tensor:
        """PatchTST and PatchTSMixer: (series, targets, moments, 1). Shorter series are padded in front.

        What is not there is 0 and masked, so that it has no part in the scaling.
        """
        shape = (len(series), self.config.context, self.config.channels)
        past = torch.full(shape, torch.nan, device=self.device)
        for row, one in zip(past, series, strict=True):
            row[len(row) - len(one.values) :] = one.values
        is_there = ~past.isnan()
        mask = {_MASK[self.config.family]: is_there.to(past.dtype)}
        output: Tensor = self.model(past_values=past.nan_to_num(0.0), **mask).prediction_outputs
        return output.transpose(1, 2).unsqueeze(-1)

    def _by_quantiles(self, series: list[_Series]) -> Tensor:
        """TimesFM 2.5: (series, 1, moments, numbers)."""
        values = [one.values[:, 0] for one in series]
        # transformers looks at the smallest number of a whole batch.
        numbers: Tensor = self.model(
            past_values=values, forecast_context_len=self.config.context, truncate_negative=False
        ).full_predictions
        if self.config.stays_positive:
            is_positive = torch.stack([one.min() for one in values]) >= 0
            numbers = torch.where(is_positive[:, None, None], numbers.clamp_min(0.0), numbers)
        return numbers[:, None]

    def _in_passes(self, series: list[_Series]) -> list[Tensor]:
        """TimesFM 2.0. As its authors do, a later pass reads the means of those before it."""
        values = [one.values[:, 0] for one in series]
        said: list[list[Tensor]] = [[] for _ in series]
        for begin in range(0, max(one.horizon for one in series), self.config.horizon):
            rows = [row for row, one in enumerate(series) if one.horizon > begin]
            numbers = self._pass([values[row] for row in rows], [series[row].frequency for row in rows])
            for row, of_row in zip(rows, numbers, strict=True):
                said[row].append(of_row)
                values[row] = torch.cat([values[row], of_row[:, 0]])
        return [torch.cat(parts)[None, : one.horizon] for parts, one in zip(said, series, strict=True)]

    def _pass(self, values: list[Tensor], frequencies: list[int]) -> Tensor:
        """(series, moments, numbers). The patches in front of the longest series are left out: they are masked."""
        longest = min(max(map(len, values)), self.config.context)
        length = -(-longest // self.config.patch) * self.config.patch
        output: Any = self.model(past_values=values, freq=frequencies, forecast_context_len=length)
        numbers: Tensor = output.full_predictions
        return numbers
