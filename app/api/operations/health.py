"""GET /, /health, /health/live, /health/ready, /health/deep, /metrics and /version"""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from starlette.responses import Response

from ...metrics import CONTENT_TYPE
from ...version import __version__
from ..deps import ServiceDep
from ..edge.answer import AnswerBody, json_response
from ..edge.document import answers

router = APIRouter()


class Health(AnswerBody):
    """Whether the server is well, or why not."""

    status: str


class Version(AnswerBody):
    """The server's version."""

    version: str


_HEALTH = answers(Health, (400, 500)) | answers(Health, (503,), error=Health)


def _answer(is_well: bool, status: str) -> Response:
    return json_response(Health(status), 200 if is_well else 503)


@router.get("/", include_in_schema=False)
async def root(service: ServiceDep) -> Response:
    """A line for people who open the server's address in a browser."""
    where = "See /docs for the API, /v1/models, /health and /metrics."
    return PlainTextResponse(f"Paceline {__version__} serves {service.model_name}. {where}\n")


@router.get("/health", responses=_HEALTH)
@router.get("/health/ready", responses=_HEALTH)
async def ready(service: ServiceDep, request: Request) -> Response:
    """200 if requests can be served now, else 503 with the reason: loading, draining, full."""
    if request.app.state.drain.has_begun:
        return _answer(False, "draining")
    if service.engine.ready is None:
        return _answer(False, service.engine.failure or "loading")
    return _answer(not service.engine.is_full, "full" if service.engine.is_full else "ready")


@router.get("/health/live", responses=_HEALTH)
async def live(service: ServiceDep) -> Response:
    """503 once the step loop hangs, or the engine is gone for good; a model that is still loading is alive."""
    if service.engine.failure is not None:
        return _answer(False, service.engine.failure)
    limit = service.settings.step_timeout / 2
    is_stuck = service.engine.ready is not None and service.engine.heartbeat.seconds_silent > limit
    return _answer(not is_stuck, "stuck" if is_stuck else "alive")


@router.get("/health/deep", responses=_HEALTH)
async def deep(service: ServiceDep, request: Request) -> Response:
    """200 if the model gives a token. The answer is kept for some seconds."""
    problem = await request.app.state.deep_check.problem(service)
    return _answer(not problem, problem or "ready")


@router.get("/metrics", response_class=PlainTextResponse, responses=answers(None, (400, 401, 500)))
async def metrics(service: ServiceDep) -> Response:
    """Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/version", responses=answers(Version))
async def version() -> Response:
    """Paceline's version."""
    return json_response(Version(__version__))
