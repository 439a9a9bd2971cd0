"""What surrounds every request: its id, the limit on its body, draining, and its record at the end."""

import logging
import re
import sys
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import DrainingError, InternalError, PayloadTooLargeError, StartupError, is_fault
from .encoding import decoded
from .errors import error_response
from .request_log import RequestLog

if TYPE_CHECKING:
    from .tracing import Tracing

log = logging.getLogger(f"{__package__}.access")

CHOSEN = "paceline.service"
"""The key of a scope with the model that its request is for, where there are several (`app.api.services`)."""
_QUIET = {"/health", "/health/live", "/health/ready", "/health/deep", "/metrics", "/v1/engine/steps"}
"""Paths of those who look on. They are answered while the server drains, hold it up no longer, and are logged at level
debug."""
PAGE_FILES = "/page/"
"""Below it are the files of the page at /."""
_BEGUN = ("/v1/streams/", "/v1/responses/")
"""Paths of work that has begun: resumed streams and responses in the background. They are served during a drain."""
_MOST_IGNORED, _LONGEST_NAME = 16, 64
"""Names in the header X-Ignored-Fields, and characters of a name."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=@-]{1,128}")


class Drain:
    """The state of draining: whether it has begun, and whether it is over."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that open requests have to end."""
        self._timeout = timeout
        self._began_at: float | None = None
        self._is_told = False
        self.num_open = 0
        """Open requests except probes. `RequestMiddleware` counts them."""

    def begin(self) -> None:
        """Refuse new requests from now on. A second call changes nothing."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    def tell(self) -> None:
        """Log once what the process still waits for. `begin` does not, since it is called by a signal's handler."""
        if self.has_begun and not self._is_told:
            self._is_told = True
            if self.num_open:
                log.info(
                    "draining: requests still open: %d; they have %g s to finish; a second signal ends them",
                    self.num_open,
                    self._timeout,
                )

    @property
    def has_begun(self) -> bool:
        return self._began_at is not None

    @property
    def is_over(self) -> bool:
        """Whether the process may exit."""
        if self._began_at is None:
            return False
        return self.num_open == 0 or time.monotonic() > self._began_at + self._timeout


class Limit(NamedTuple):
    """The largest body."""

    size: int
    """In bytes."""
    setting: str
    """Its name."""


class RequestMiddleware:
    """Pure ASGI, since Starlette's BaseHTTPMiddleware would cost a task and a queue for each stream."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, Limit], drain: Drain, tracing: "Tracing | None") -> None:
        """`limits`: by path; that of "" is for all others."""
        self._app = app
        self._limits = limits
        self._drain = drain
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, _with_short_reason(send))
            return
        entry = RequestLog(_request_id(scope), arrived_at=time.monotonic(), record=partial(self._record, scope))
        scope["request_log"] = entry
        request_id = entry.request_id.encode("latin-1")

        async def send_start(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                if entry.ignored_fields:
                    message["headers"].append((b"x-ignored-fields", _ignored(entry)))
                if self._drain.has_begun:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        is_work = scope["path"] not in _QUIET
        self._drain.num_open += is_work
        try:
            if self._drain.has_begun and is_work and not scope["path"].startswith(_BEGUN):
                refusal = DrainingError("the server is shutting down")
                await error_response(refusal, scope)(scope, receive, send_start)
                return
            limit = self._limits.get(scope["path"], self._limits[""])
            arriving = _limited(receive, limit, _declared_size(scope))
            body = _limited(decoded(arriving, scope, limit.size), limit)
            await self._app(scope, body, send_start)
        except ClientDisconnect:  # while the body was being read
            entry.error = "the client is gone"
        except BaseException as error:
            if not is_fault(error):
                raise
            log.error("an unexpected error", exc_info=error, extra={"fields": {"request_id": entry.request_id}})
            failure = InternalError("the server failed on this request")
            if entry.status:
                entry.note_error(failure)
                raise  # the answer has begun: uvicorn closes the connection
            await error_response(failure, scope)(scope, receive, send_start)
        finally:
            entry.release()

    def _record(self, scope: Scope, entry: RequestLog) -> None:
        self._drain.num_open -= scope["path"] not in _QUIET
        service = scope.get(CHOSEN) or scope["app"].state.service
        if entry.rejection:
            service.metrics.record_rejected(entry.rejection)
        if entry.ignored_fields:
            service.metrics.record_ignored_fields()
        fields = entry.fields()
        if self._tracing and (trace_id := self._tracing.record(scope, entry, service.model_name)):
            fields["trace_id"] = trace_id
        is_quiet = scope["path"] in _QUIET or scope["path"].startswith(PAGE_FILES)
        level = logging.DEBUG if is_quiet else logging.INFO
        request = {"method": scope["method"], "path": quote(scope["path"]), "status": entry.status}
        log.log(level, "%(method)s %(path)s %(status)d", request, extra={"fields": fields})


def _with_short_reason(send: Send) -> Send:
    """A `send` that tells the server why the application cannot start: Starlette would tell it a traceback."""

    async def send_reason(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed" and isinstance(error := sys.exception(), StartupError):
            message["message"] = str(error)
        await send(message)

    return send_reason


def _ignored(entry: RequestLog) -> bytes:
    """The header X-Ignored-Fields. Clients choose the names, so their number, length and characters are bounded."""
    names = sorted(entry.ignored_fields)[:_MOST_IGNORED]
    return ", ".join(quote(name, safe="[]")[:_LONGEST_NAME] for name in names).encode()


def _request_id(scope: Scope) -> str:
    """The client's X-Request-ID if it is well-formed, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def _declared_size(scope: Scope) -> int:
    """What Content-Length says, which the server has checked; 0 if there is none."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)


def _limited(receive: Receive, limit: Limit, declared: int = 0) -> Receive:
    """A `receive` that refuses a body beyond the limit: at once if its size was `declared`, else while it is read."""
    size = 0

    def check(size: int) -> None:
        if size > limit.size:
            raise PayloadTooLargeError(f"the request's body is larger than {limit.size} bytes ({limit.setting})")

    async def limited() -> Message:
        nonlocal size
        check(declared)
        message = await receive()
        size += len(message.get("body", b""))
        check(size)
        return message

    return limited
