"""Runs the requests of a batch, so many at a time, through the application of this process."""

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from fastapi import FastAPI

from ...errors import EngineUnavailableError, NotFoundError
from ...tenants import Tenant
from ..edge.inside import Inside, request_inside
from ..service import Service
from ..services import Services, services_at
from .lines import Line

Write = Callable[[Line, Inside], None]


class Group(NamedTuple):
    """Requests for the same model."""

    service: Service | None
    """None: they name no model that there is, so no model has to be awake to refuse them."""
    lines: Iterator[Line]


def grouped(app: FastAPI, read: Callable[[], Iterator[Line]]) -> list[Group]:
    """The requests of a file by the models that they are for. `read` gives them all, and is called for each model."""
    services = services_at(app.state)
    if services is None:
        return [Group(app.state.service, read())]
    homes: dict[str | None, Service | None] = {}
    for line in read():
        if line.model not in homes:
            homes[line.model] = _home(services, line.model)

    def lines_of(service: Service | None) -> Iterator[Line]:
        return (line for line in read() if homes[line.model] is service)

    wanted = {None if home is None else home.model_name: home for home in homes.values()}
    return [Group(service, lines_of(service)) for service in wanted.values()]


def _home(services: Services, name: str | None) -> Service | None:
    try:
        return services.all[0] if name is None else services.find(name)
    except NotFoundError:
        return None


async def wake(app: FastAPI, service: Service) -> None:
    """Wait until a model is loaded, if it is one of several. Raises EngineUnavailableError if none will be any more."""
    services = services_at(app.state)
    if services is not None:
        await services.wake_for_later(service)


async def run_lines(
    app: FastAPI, tenant: Tenant, group: Group, room: asyncio.Semaphore, write: Write, priority: int = 0
) -> None:
    """Send the requests, and `write` their answers as they come. When cancelled, it leaves nothing running.

    `room`: for requests in flight, of this batch and others. `priority` is added to that of the requests.
    Raises EngineUnavailableError if no engine will come any more.
    """
    turn, clock = asyncio.Lock(), asyncio.get_running_loop().time

    async def one(line: Line, has_place: asyncio.Event) -> None:
        content, due_at = _content(line, priority), 0.0
        while True:
            # A line that is to wait holds up those behind it, and takes no place from other batches meanwhile.
            async with turn:
                await asyncio.sleep(due_at - clock())
                if group.service is not None:  # as a request it would stand among the live ones that wait for the model
                    await wake(app, group.service)
                await room.acquire()
            has_place.set()
            try:
                answer = await request_inside(app, tenant, "POST", line.url, content)
            finally:
                room.release()
            seconds = _seconds_to_wait(group.service, answer)
            if seconds is None:
                write(line, answer)
                return
            due_at = clock() + seconds

    try:
        async with asyncio.TaskGroup() as tasks:
            # In a thread: behind thousands of lines that are answered already there may be none.
            while (line := await asyncio.to_thread(next, group.lines, None)) is not None:
                has_place = asyncio.Event()
                tasks.create_task(one(line, has_place))
                await has_place.wait()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _content(line: Line, priority: int) -> bytes:
    """The body of a request."""
    body = line.body
    if priority:
        own = body.get("priority")
        # However low its own is, it stays behind those of live traffic.
        body = {**body, "priority": priority + max(own, 0)} if isinstance(own, int) else {"priority": priority, **body}
    return msgspec.json.encode(body)


def _seconds_to_wait(service: Service | None, answer: Inside) -> float | None:
    """When a request that there is no room for now may be sent again, as the server says; None if this is its answer.

    Raises EngineUnavailableError.
    """
    wait = answer.headers.get("retry-after")
    if answer.status not in (429, 503) or wait is None:
        return None
    if service is not None and service.engine.failure is not None:
        raise EngineUnavailableError(service.engine.failure)
    return float(wait)
