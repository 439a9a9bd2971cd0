"""Stopping work that nobody waits for any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive


async def run_unless_disconnected(request: Request, work: Coroutine[Any, Any, bytes]) -> Response:
    """Run `work` and answer with its JSON; if the client goes away before, cancel it."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)  # nginx's code; nobody reads it but the log
        return Response(task.result(), media_type="application/json")
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone away; what it still sends is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
