"""Server-sent events, as OpenAI's and Anthropic's APIs use them (WHATWG HTML, section 9.2)."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import ApiError, InternalError, is_fault
from .answer import AnswerBody, NamedEvent, encode_json, wait_for_disconnect
from .errors import error_body

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEPALIVE_SECONDS = 1.0
"""After this much silence, a comment tells proxies and clients that the stream is alive."""
_COMMENT = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # tells nginx to pass events on at once
]


def event(data: AnswerBody) -> bytes:
    """One event with JSON data."""
    return b"data: " + encode_json(data) + b"\n\n"


def named_event(data: NamedEvent) -> bytes:
    """One event with JSON data and its name."""
    return f"event: {data.type}\n".encode() + event(data)


def done(error: ApiError | None) -> bytes:
    """The end of a stream of chat or completions: an event about the error, if there is one, then `[DONE]`."""
    return DONE if error is None else event(error_body(error)) + DONE


async def ended(
    events: AsyncGenerator[bytes, None], end: Callable[[ApiError | None], bytes] = done
) -> AsyncGenerator[bytes, None]:
    """All events, then those that `end` makes of the error that ended them, or of None."""
    error: ApiError | None = None
    try:
        async with aclosing(events):
            async for data in events:
                yield data
    except ApiError as failure:
        error = failure
    except BaseException as fault:
        if not is_fault(fault):
            raise
        log.exception("a stream failed")
        error = InternalError("the server failed on this request")
    yield end(error)


class EventStream(Response):
    """Sends events as they come and comments during silence. Stops the work when the client disconnects."""

    def __init__(self, events: AsyncGenerator[bytes, None], stop: Callable[[], None]) -> None:
        """`stop` ends the work, if any is left. Closing a generator that has not begun would not."""
        super().__init__(status_code=200)
        self._events = events
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """See ASGI."""
        try:
            await self._run(receive, send)
        finally:
            self._stop()

    async def _run(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        tasks = [
            asyncio.create_task(self._send_events(send)),
            asyncio.create_task(wait_for_disconnect(receive)),
            asyncio.create_task(self._send_comments(send)),
        ]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()
        if not tasks[0].cancelled():
            tasks[0].result()  # raises what `_send_events` raised

    async def _send_events(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_sent = loop.time()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_comments(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        while True:
            await asyncio.sleep(self._last_sent + KEEPALIVE_SECONDS - loop.time())
            if loop.time() - self._last_sent >= KEEPALIVE_SECONDS:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
                self._last_sent = loop.time()
