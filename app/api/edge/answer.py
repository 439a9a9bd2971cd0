"""What answers are made of, and how a whole one is sent."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all JSON that is sent. Subclasses are encoded as they are, and are what /openapi.json describes.

    A field that may be left out is UNSET then. A class that has subclasses stands for any of them.
    """


class NamedEvent(AnswerBody):
    """A server-sent event that repeats its name as `type`."""

    type: str


encode_json = msgspec.json.Encoder().encode


def json_response(body: AnswerBody, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(encode_json(body), status, headers, media_type="application/json")


async def run_unless_disconnected(request: Request, work: Coroutine[Any, Any, AnswerBody | Response]) -> Response:
    """Run `work` and answer with what it returns. If the client disconnects before, cancel it."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)  # nginx's code, for the log: no client reads it
        result = task.result()
        return result if isinstance(result, Response) else json_response(result)
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected. What it still sends is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
