"""POST /v1/forecast"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ..deps import ADMITTED, ServiceDep, body_of, entry_of
from ..edge.answer import run_unless_disconnected
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..encoders.inputs import check_number
from .answer import Forecasts
from .in_passes import forecast_in_passes
from .in_samples import forecast_in_samples
from .schema import ForecastRequest

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
    service.ready()
    service.check_task("forecast")
    check_number(service, body.series, "series")
    if service.encoder_decoder is not None:
        return await run_unless_disconnected(request, forecast_in_samples(service, entry_of(request), body))
    return await run_unless_disconnected(request, forecast_in_passes(service, request, body))
