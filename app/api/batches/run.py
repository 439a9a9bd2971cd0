"""Runs the requests of a batch, so many at a time, through the application of this process."""

import asyncio
from collections.abc import Callable, Iterable

import msgspec
from fastapi import FastAPI

from ...errors import EngineUnavailableError
from ...tenants import Tenant
from ..edge.inside import Inside, request_inside
from ..service import Service
from .lines import Line

Write = Callable[[Line, Inside], None]


async def run_lines(
    app: FastAPI, tenant: Tenant, lines: Iterable[Line], room: asyncio.Semaphore, write: Write, priority: int = 0
) -> None:
    """Send the requests, and `write` their answers as they come. When cancelled, it leaves nothing running.

    `room`: for requests in flight, of this batch and others. `priority` is added to that of the requests.
    Raises EngineUnavailableError if no engine will come any more.
    """

    async def one(line: Line) -> None:
        try:
            write(line, await _send(app, tenant, line, priority))
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as group:
            for line in lines:
                await room.acquire()
                group.create_task(one(line))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _send(app: FastAPI, tenant: Tenant, line: Line, priority: int) -> Inside:
    """The answer to a request. One that there is no room for now is sent again when the server says so."""
    body = line.body
    if priority:
        own = body.get("priority")
        body = {**body, "priority": priority + own} if isinstance(own, int) else {"priority": priority, **body}
    content = msgspec.json.encode(body)
    while True:
        answer = await request_inside(app, tenant, "POST", line.url, content)
        wait = answer.headers.get("retry-after")
        if answer.status not in (429, 503) or wait is None:
            return answer
        service: Service = app.state.service
        if service.engine.failure is not None:
            raise EngineUnavailableError(service.engine.failure)
        await asyncio.sleep(float(wait))
