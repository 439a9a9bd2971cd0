"""uvicorn's fast HTTP protocol, with one repair: HTTP/1.0 clients get bodies that they can read.

uvicorn answers every request of unknown length in chunks. HTTP/1.0 knows no chunks: there, a body ends where the
connection does (RFC 9112, section 6.3). nginx, for one, speaks HTTP/1.0 to the servers behind it by default.

Give it to uvicorn as `http=HttpProtocol`.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent


class HttpProtocol(HttpToolsProtocol):
    """Does not send chunks to HTTP/1.0 clients."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)


def _unchunked(app: "ASGI3Application", cycle: RequestResponseCycle) -> "ASGI3Application":
    """`app`, with a body of unknown length ended by the connection's end (uvicorn closes it in any case)."""

    has_length = False

    async def send(message: "ASGISendEvent") -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", []))
            if not has_length:
                cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and not has_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await cycle.send(message)

    async def unchunked(scope: Any, receive: Callable[[], Awaitable[Any]], _send: object) -> None:
        await app(scope, receive, send)

    return unchunked
