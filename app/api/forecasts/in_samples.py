"""Forecasts of Chronos: paths of a series are drawn as texts are, and the quantiles are those of the paths.

As in amazon-science/chronos-forecasting: a horizon beyond what the model was made for is reached in passes, of which
each reads the medians of the one before.
"""

import secrets
from dataclasses import dataclass, field, replace

import numpy as np

from ...checkpoint.chronos import Floats, Scaled, SeriesTokens
from ...core.sampling import SamplingParams
from ...errors import InvalidRequestError
from ...text.output_processor import StopConditions
from ..edge.request_log import RequestLog
from ..encoders.answer import EncoderUsage
from ..generation.choices import SEED_BITS, Choice, seed_of_choice, usable_temperature
from ..generation.in_turn import InTurn, Written
from ..generation.prompts import in_thread
from ..service import Service
from .answer import Forecast, Forecasts, forecast_of
from .schema import ForecastRequest, check_finite, check_size, numbers_of, wrong

_DECILES = [number / 10 for number in range(1, 10)]


@dataclass
class _Series:
    """A series, and how it goes on so far."""

    values: Floats
    """What the next pass reads, NaN where a number is missing."""
    passes: list[Floats] = field(default_factory=list)
    """(paths, moments) of each pass."""


async def forecast_in_samples(service: Service, entry: RequestLog, body: ForecastRequest) -> Forecasts:
    """The answer of a model whose tokens stand for numbers. Raises ApiError."""
    assert service.encoder_decoder is not None
    tokens = service.encoder_decoder.series
    assert tokens is not None
    sampling = _Sampling(service, entry, body, tokens)
    quantiles = sampling.quantiles
    series = await in_thread(lambda: _read(body), body.num_numbers)
    await sampling.go_on(series)
    data = await in_thread(
        lambda: [_forecast(index, one, quantiles, body) for index, one in enumerate(series)],
        len(series) * sampling.horizon * sampling.num_samples,
    )
    read, drawn = sampling.num_read, sampling.turns.usage.completion_tokens
    usage = EncoderUsage(prompt_tokens=read, total_tokens=read + drawn)
    return Forecasts(data=data, model=service.model_name, usage=usage)


def _read(body: ForecastRequest) -> list[_Series]:
    _ = body.frequency_class  # which says what is wrong with it, though the model reads none
    return [_Series(numbers_of(body, index, 1)[0]) for index in range(len(body.series))]


def _forecast(index: int, series: _Series, quantiles: list[float], body: ForecastRequest) -> Forecast:
    paths = np.concatenate(series.passes, axis=1)  # (paths, moments)
    with np.errstate(over="ignore"):
        paths = paths.astype(np.float32)
    check_finite(index, paths)
    known = sorted({0.5, *quantiles})
    numbers = np.stack([paths.mean(0, np.float64), *np.quantile(paths, known, axis=0)], axis=-1)
    return forecast_of(index, numbers[None], known, quantiles, isinstance(body.series[index][0], list))


class _Sampling:
    """What a call asks for, and how its paths are drawn."""

    def __init__(self, service: Service, entry: RequestLog, body: ForecastRequest, tokens: SeriesTokens) -> None:
        """Raises InvalidRequestError for what the model does not forecast, or for too much of it."""
        self._service = service
        self.horizon = body.horizon or tokens.horizon
        if self.horizon > tokens.context:
            raise InvalidRequestError(f"horizon: at most {tokens.context} for this model", "horizon")
        self.quantiles = _DECILES if body.quantiles is None else body.quantiles
        if not all(0 < quantile < 1 for quantile in self.quantiles):
            raise InvalidRequestError("quantiles: must be between 0 and 1", "quantiles")
        most = service.settings.request_limits.max_n
        self.num_samples = tokens.num_samples if body.num_samples is None else body.num_samples
        if self.num_samples > most:
            raise InvalidRequestError(f"num_samples: at most {most} (max_n)", "num_samples")
        check_size(service, body, self.horizon, self.num_samples + 1 + len(self.quantiles))
        self._num_rows = service.ready().max_num_seqs
        given = {name: getattr(body, name) for name in ("temperature", "top_k", "top_p")}
        self._tokens = replace(tokens, **{name: value for name, value in given.items() if value is not None})
        self._seed = secrets.randbits(SEED_BITS) if body.seed is None else body.seed
        self.turns = InTurn(service, body.priority, entry)
        self.num_read = 0
        """Tokens of series, once in each pass, though the engine may read them once for each part of the paths."""

    async def go_on(self, series: list[_Series]) -> None:
        """Draw paths of all series as far as the horizon.

        The engine has as many of a call at a time as a step has rows: so other calls get their turn, and places in the
        queue.
        """
        at_once = max(1, self._num_rows // self.num_samples)
        most = min(self._tokens.horizon, self.turns.max_model_len - 1)
        for index, begin in enumerate(range(0, self.horizon, most)):
            count = min(most, self.horizon - begin)
            for start in range(0, len(series), at_once):
                await self._pass(series[start : start + at_once], start, index * self.num_samples, count)

    async def _pass(self, series: list[_Series], start: int, first_seed: int, count: int) -> None:
        """Draw `count` numbers more for the paths of some series, of which the first is the call's `start`-th.

        The seeds are the same for each series, so that its forecast does not depend on the others.
        """
        described = self._service.encoder_decoder
        assert described is not None
        scaled = [self._scaled(start + index, one) for index, one in enumerate(series)]
        choices = [
            Choice(list(described.beginning), self._sampling(first_seed + path, count), StopConditions(), source=source)
            for source, _ in scaled
            for path in range(self.num_samples)
        ]
        self.num_read += sum(choice.num_prompt_tokens for choice in choices[:: self.num_samples])
        written: list[Written] = []
        for begin in range(0, len(choices), self._num_rows):  # those of one series alone may be more
            part = choices[begin : begin + self._num_rows]
            written += await self.turns.run(part, min(self.num_samples, len(part)))
        drawn = np.array([path.token_ids for path in written]).reshape(len(series), self.num_samples, count)
        for one, tokens, (_, scale) in zip(series, drawn, scaled, strict=True):
            numbers = self._tokens.values(tokens, scale)
            one.passes.append(numbers)
            lower_medians = np.sort(numbers, axis=0)[(self.num_samples - 1) // 2]  # as torch has them
            one.values = np.append(one.values, lower_medians)

    def _scaled(self, index: int, series: _Series) -> Scaled:
        try:
            return self._tokens.source(series.values)
        except ValueError as error:
            raise wrong(index, str(error)) from None

    def _sampling(self, index: int, count: int) -> SamplingParams:
        assert self._service.encoder_decoder is not None
        return SamplingParams(
            max_tokens=count,
            seed=seed_of_choice(self._seed, index),
            temperature=usable_temperature(self._tokens.temperature),
            top_k=self._tokens.top_k,
            top_p=self._tokens.top_p,
            rules=self._service.encoder_decoder.rules,
        )
