"""POST /v1/forecast"""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...checkpoint.forecasters import ForecasterConfig
from ...core.media import Media
from ...errors import InvalidRequestError
from ..deps import ADMITTED, ServiceDep, body_of
from ..edge.answer import run_unless_disconnected
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..encoders.answer import EncoderUsage
from ..encoders.inputs import check_number
from ..encoders.run import predict
from ..generation.prompts import in_thread
from ..service import Service
from .answer import Forecasts, forecast_of
from .schema import ForecastRequest, channels_of

router = APIRouter()


@router.post(
    "/v1/forecast",
    openapi_extra=body_schema(ForecastRequest),
    responses=answers(Forecasts, RUNS),
    dependencies=ADMITTED,
)
async def forecast(
    body: Annotated[ForecastRequest, Depends(body_of(ForecastRequest))], request: Request, service: ServiceDep
) -> Response:
    """How series of numbers go on."""
    service.check_model(body.model)
    config = _config(service)
    horizon, quantiles = _asked(service, config, body)

    async def work() -> Forecasts:
        size = sum(len(series) for series in body.series if isinstance(series, list))
        inputs = await in_thread(lambda: _prepared(config, body, horizon), size)
        done = await predict(service, request, inputs, body.priority)
        for index, vector in enumerate(done.vectors):
            if not np.isfinite(vector).all():
                raise _wrong(index, "the model has no finite forecast for it; its numbers may be too large")
        data = [
            forecast_of(config, index, vector, quantiles, isinstance(series[0], list))
            for index, (series, vector) in enumerate(zip(body.series, done.vectors, strict=True))
        ]
        usage = EncoderUsage(prompt_tokens=done.num_tokens, total_tokens=done.num_tokens)
        return Forecasts(data=data, model=service.model_name, usage=usage)

    return await run_unless_disconnected(request, work())


def _config(service: Service) -> ForecasterConfig:
    """The forecaster's description. Raises UnsupportedError if the model is none."""
    ready = service.ready()
    service.check_task("forecast")
    assert isinstance(service.predictor, ForecasterConfig)
    return service.predictor.limited_to(ready.max_model_len)


def _asked(service: Service, config: ForecasterConfig, body: ForecastRequest) -> tuple[int, list[float]]:
    """Horizon and quantiles. Raises InvalidRequestError for what the model does not forecast, or for too much of it."""
    check_number(service, body.series, "series")
    horizon = body.horizon or config.horizon
    if horizon > config.max_horizon:
        raise InvalidRequestError(f"horizon: at most {config.max_horizon} for this model", "horizon")
    quantiles = list(config.quantiles) if body.quantiles is None else body.quantiles
    if not set(quantiles) <= set(config.quantiles):
        known = ", ".join(f"{quantile:g}" for quantile in config.quantiles) or "none"
        raise InvalidRequestError(f"quantiles: this model forecasts {known}", "quantiles")
    most, count = service.settings.request_limits.max_numbers, len(body.series) * len(config.targets) * horizon
    if count * config.numbers > most:
        what = f"{count * config.numbers} numbers would be forecast, and at most {most} may be (max_numbers)"
        raise InvalidRequestError(f"horizon: {what}", "horizon")
    return horizon, quantiles


def _prepared(config: ForecasterConfig, body: ForecastRequest, horizon: int) -> list[Media]:
    frequency, inputs = body.frequency_class, []
    for index, series in enumerate(body.series):
        channels = channels_of(series, f"series[{index}]")
        if len(channels) != config.channels:
            raise _wrong(index, f"this model reads {config.channels} channels, and the series has {len(channels)}")
        try:
            inputs.append(config.prepare(np.array(channels, np.float64), horizon, frequency))
        except (ValueError, OverflowError) as error:
            raise _wrong(index, str(error)) from None
    return inputs


def _wrong(index: int, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"series[{index}]: {what}", f"series[{index}]")
