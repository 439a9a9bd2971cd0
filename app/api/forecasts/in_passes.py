"""Forecasts of models that read a series as a whole, and say numbers."""

from fastapi import Request

from ...checkpoint.forecasters import ForecasterConfig
from ...core.media import Media
from ...errors import InvalidRequestError, UnsupportedError
from ..encoders.answer import EncoderUsage
from ..encoders.run import predict
from ..generation.prompts import in_thread
from ..service import Service
from .answer import Forecasts, forecast_of
from .schema import OF_SAMPLES, ForecastRequest, check_finite, check_size, numbers_of, wrong


async def forecast_in_passes(service: Service, request: Request, body: ForecastRequest) -> Forecasts:
    """The answer of a predictor. Raises ApiError."""
    assert isinstance(service.predictor, ForecasterConfig)
    config = service.predictor.limited_to(service.ready().max_model_len)
    horizon, quantiles = _asked(service, config, body)
    inputs = await in_thread(lambda: _prepared(config, body, horizon), body.num_numbers)
    done = await predict(service, request, inputs, body.priority)
    data = []
    for index, (series, vector) in enumerate(zip(body.series, done.vectors, strict=True)):
        check_finite(index, vector)
        numbers = vector.reshape(len(config.targets), -1, config.numbers)
        data.append(forecast_of(index, numbers, config.quantiles, quantiles, isinstance(series[0], list)))
    usage = EncoderUsage(prompt_tokens=done.num_tokens, total_tokens=done.num_tokens)
    return Forecasts(data=data, model=service.model_name, usage=usage)


def _asked(service: Service, config: ForecasterConfig, body: ForecastRequest) -> tuple[int, list[float]]:
    """Horizon and quantiles. Raises InvalidRequestError for what the model does not forecast, or for too much of it."""
    for name in OF_SAMPLES:
        if getattr(body, name) is not None:
            raise UnsupportedError(f"{name}: this model draws no samples", name)
    horizon = body.horizon or config.horizon
    if horizon > config.max_horizon:
        raise InvalidRequestError(f"horizon: at most {config.max_horizon} for this model", "horizon")
    quantiles = list(config.quantiles) if body.quantiles is None else body.quantiles
    if not set(quantiles) <= set(config.quantiles):
        known = ", ".join(f"{quantile:g}" for quantile in config.quantiles) or "none"
        raise InvalidRequestError(f"quantiles: this model forecasts {known}", "quantiles")
    check_size(service, body, horizon, len(config.targets) * config.numbers)
    return horizon, quantiles


def _prepared(config: ForecasterConfig, body: ForecastRequest, horizon: int) -> list[Media]:
    frequency, inputs = body.frequency_class, []
    for index in range(len(body.series)):
        values = numbers_of(body, index, config.channels)
        try:
            inputs.append(config.prepare(values, horizon, frequency))
        except (ValueError, OverflowError) as error:
            raise wrong(index, str(error)) from None
    return inputs
