"""uvicorn's HTTP protocol on httptools, with timeouts for slow senders and slow readers, and a limit on headers.

It also repairs answers to HTTP/1.0 clients, such as nginx in its default configuration: uvicorn sends a body of unknown
length in chunks, which HTTP/1.0 does not have. There, such a body ends with the connection (RFC 9112, section 6.3).

Give it to uvicorn as `http=HttpProtocol`.
"""

from asyncio import TimerHandle, Transport
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ...errors import ApiError, HeadTooLargeError, InvalidRequestError, RequestTimeoutError
from ...settings import ServerSettings
from .answer import encode_json
from .errors import error_body

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent

_MAX_OVERHEAD = 64 * 2**10
"""Bytes of a request that are not its body: head, frames of chunks, trailers."""
_OVERHEAD_OF_A_BYTE = 16
"""How many bytes of overhead each byte of a body allows: a chunk of one byte has 5 bytes of framing."""


class HttpProtocol(HttpToolsProtocol):
    """One connection, with one timer for what has to arrive, and one for what the client has to read."""

    def __init__(self, *args: Any, settings: ServerSettings | None = None, **options: Any) -> None:
        """`settings`: for the timeouts; the defaults if uvicorn was only given the class."""
        super().__init__(*args, **options)
        self._settings = settings or ServerSettings()
        self._arrival: TimerHandle | None = None
        self._delivery: TimerHandle | None = None
        self._overhead = 0
        self._head_size = 0
        self._is_in_head = True

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._expect("head", self._settings.client_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._has_arrived()
        self._has_been_read()

    # ------------------------------------------------------------------ slow senders, giant heads

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._overhead += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._overhead > _MAX_OVERHEAD:
            self._refuse_head()
        elif self._is_in_head and self._arrival is None and not self._is_answering:
            self._expect("head", self._settings.client_timeout)  # uvicorn has just stopped its timer of idleness

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are dropped: nobody could tell them from headers."""
        if self._is_in_head:
            self._head_size += len(name) + len(value) + len(b": \r\n")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._has_arrived()
        self._is_in_head = False
        if len(self.url) + self._head_size > _MAX_OVERHEAD:  # it has come in one piece, perhaps with its body
            self._refuse_head()
            raise ValueError  # ends parsing
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._overhead -= len(body) * (1 + _OVERHEAD_OF_A_BYTE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._has_arrived()
        self._overhead = self._head_size = 0
        self._is_in_head = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        if cycle.more_body:
            self._expect("body", self._settings.client_timeout)
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _expect(self, what: str, seconds: float) -> None:
        """Refuse the request unless the rest of its head, or of its body, arrives in time."""
        self._has_arrived()
        error = RequestTimeoutError(f"the request's {what} did not arrive within {seconds:g} s")
        self._arrival = self.loop.call_later(seconds, self._refuse, error)

    def _has_arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _refuse_head(self) -> None:
        self._refuse(HeadTooLargeError(f"the request's headers take more than {_MAX_OVERHEAD} bytes"))

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: what came is not HTTP."""
        self._refuse(InvalidRequestError(msg))

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error unless an answer has begun, and close the connection."""
        has_begun = self._is_answering and (self.cycle.response_started or self.cycle.more_body is False)
        if not has_begun and not self.transport.is_closing():
            body = encode_json(error_body(error, self.cycle.scope if self._is_answering else None))
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self._close()

    # ------------------------------------------------------------------ slow readers

    def pause_writing(self) -> None:
        """See asyncio: more is written than the client reads."""
        super().pause_writing()
        self._expect_to_be_read()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._has_been_read()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_to_be_read()

    def timeout_keep_alive_handler(self) -> None:
        """See uvicorn."""
        self._close()

    def _close(self) -> None:
        self.transport.close()  # takes effect once everything has been sent, which may be never
        self._expect_to_be_read()

    def _expect_to_be_read(self) -> None:
        self._has_been_read()
        self._delivery = self.loop.call_later(self._settings.client_timeout, self.transport.abort)

    def _has_been_read(self) -> None:
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None


def _unchunked(app: "ASGI3Application", cycle: RequestResponseCycle) -> "ASGI3Application":
    """`app`, with bodies of unknown length sent as they are: uvicorn closes the connection in any case."""

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
