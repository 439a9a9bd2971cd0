"""What operators and orchestrators ask: /health, /health/live, /health/ready, /metrics, /version"""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response

from app import __version__
from app.api.schemas.answers.operations import Health, Version
from app.api.service import ServiceDep
from app.metrics import CONTENT_TYPE

router = APIRouter()

_HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": Health, "description": "It is well"},
    503: {"model": Health, "description": "It is not; the status says why"},
}


def _answer(is_well: bool, status: str) -> JSONResponse:
    return JSONResponse({"status": status}, status_code=200 if is_well else 503)


@router.get("/health", responses=_HEALTH)
@router.get("/health/ready", responses=_HEALTH)
async def ready(service: ServiceDep) -> JSONResponse:
    """200 if requests can be served now, else 503 with the reason."""
    return _answer(service.engine.ready is not None, service.engine.failure or _loading_or_ready(service))


@router.get("/health/live", responses=_HEALTH)
async def live(service: ServiceDep) -> JSONResponse:
    """503 once the engine is gone; a model that is still loading is alive."""
    return _answer(service.engine.failure is None, service.engine.failure or _loading_or_ready(service))


def _loading_or_ready(service: ServiceDep) -> str:
    return "loading" if service.engine.ready is None else "ready"


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDep) -> Response:
    """Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/version", response_model=Version)
async def version() -> dict[str, Any]:
    """Paceline's version."""
    return {"version": __version__}
