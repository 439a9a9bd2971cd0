"""FastAPI dependencies of the routes: the service, admission before a body is read, and the body itself."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from ..settings import RequestLimits
from .edge.azure import PATH_MODEL
from .edge.body import Body, read_body
from .edge.request_log import RequestLog
from .service import Service
from .services import services_at


async def _service(request: Request) -> Service:
    """The model that is served, or that a request asks for where there are several (`app.api.services`)."""
    services = services_at(request.app.state)
    if services is not None:
        return await services.chosen(request)
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]


def _admit(request: Request, service: ServiceDep) -> None:
    """Refuse a request that there is no room for, before its body is read and its prompt tokenized."""
    entry: RequestLog = request.scope["request_log"]
    service.ready()
    service.engine.check_room()
    service.check_queue(entry.tenant)
    service.admission.check_rates(entry)
    service.metrics.record_tenant_request(entry.tenant.name)


ADMITTED = [Depends(_admit)]
"""For a route's `dependencies`, which FastAPI resolves before the body is read."""


def entry_of(request: Request) -> RequestLog:
    """A request's entry in the log, which says whose it is, and how long it may take."""
    entry: RequestLog = request.scope["request_log"]
    return entry


def ignored_fields(request: Request, service: Service) -> set[str] | None:
    """Where to note unknown fields of the body; None if they are refused."""
    return entry_of(request).ignored_fields if service.settings.unknown_fields == "ignore" else None


ReadBody = Callable[[Request, type[Body], RequestLimits, set[str] | None], Awaitable[Body]]


def body_of(model: type[Body], read_as: ReadBody[Body] = read_body) -> Callable[[Request, Service], Awaitable[Body]]:
    """A dependency: the request's body as a `model`. `read_as`: by what it is read."""

    async def read(request: Request, service: ServiceDep) -> Body:
        body = await read_as(request, model, service.settings.request_limits, ignored_fields(request, service))
        if (name := request.scope.get(PATH_MODEL)) is not None:
            body = body.model_copy(update={"model": name})
        return body

    return read
