"""GET /, /health, /health/live, /health/ready, /health/deep, /metrics and /version"""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from starlette.responses import Response

from ...metrics import CONTENT_TYPE
from ...version import __version__
from ..deps import ServiceDep
from ..edge.answer import AnswerBody, json_response
from ..edge.document import answers
from ..service import Service
from ..services import services_of

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
async def root(request: Request) -> Response:
    """A line for people who open the server's address in a browser."""
    where = "See /docs for the API, /v1/models, /health and /metrics."
    names = ", ".join(service.model_name for service in services_of(request))
    return PlainTextResponse(f"Paceline {__version__} serves {names}. {where}\n")


@router.get("/health", responses=_HEALTH)
@router.get("/health/ready", responses=_HEALTH)
async def ready(request: Request) -> Response:
    """200 if requests can be served now, else 503 with the reason: loading, draining, full.

    Of several models one is enough, and one that is asleep is ready to be woken.
    """
    if request.app.state.drain.has_begun:
        return _answer(False, "draining")
    services = services_of(request)
    if any(service.state == "asleep" or (service.engine.ready and not service.engine.is_full) for service in services):
        return _answer(True, "ready")
    if any(service.engine.ready for service in services):
        return _answer(False, "full")
    return _answer(False, services[0].engine.failure or services[0].state)


@router.get("/health/live", responses=_HEALTH)
async def live(request: Request) -> Response:
    """503 once the step loop hangs, or the engine is gone for good; a model that is still loading is alive.

    Of several models one is enough: the others are restarted without the rest of the service.
    """
    problems = [_why_dead(service) for service in services_of(request)]
    return _answer(not all(problems), problems[0] if all(problems) else "alive")


def _why_dead(service: Service) -> str:
    if service.engine.failure is not None:
        return service.engine.failure
    limit = service.settings.step_timeout / 2
    is_stuck = service.engine.ready is not None and service.engine.heartbeat.seconds_silent > limit
    return "stuck" if is_stuck else ""


@router.get("/health/deep", responses=_HEALTH)
async def deep(request: Request) -> Response:
    """200 if the model gives a token, or the first of several that is loaded. The answer is kept for some seconds."""
    services = services_of(request)
    service = services[0]
    if len(services) > 1:
        loaded = [service for service in services if service.engine.ready is not None]
        if not loaded:
            is_asleep = any(service.state == "asleep" for service in services)
            return _answer(is_asleep, "asleep" if is_asleep else "no model is loaded")
        service = loaded[0]
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
