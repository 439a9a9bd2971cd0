"""Every error that a user can meet, as one tree, with one class for each HTTP outcome.

PacelineError
├── ApiError                     becomes an HTTP answer in OpenAI's error format
│   ├── InvalidRequestError      400  the request is wrong; `param` names the field
│   │   ├── ContextLengthError   400  prompt and output are longer than the model's context
│   │   └── UnsupportedError     400  the request is valid, but Paceline does not support it
│   ├── AuthenticationError      401  the API key is missing or unknown
│   ├── NotFoundError            404
│   ├── PayloadTooLargeError     413
│   ├── UnsupportedEncodingError 415  the body is compressed in a way that is not read
│   ├── RequestTimeoutError      408  the client sends too slowly
│   ├── HeadTooLargeError        431  the headers are too large
│   ├── QueueFullError           429  too many requests are open; Retry-After
│   │   └── TenantQueueFullError 429  ... of this tenant
│   ├── RateLimitError           429  a tenant's limit per minute is used up; Retry-After
│   ├── InternalError            500  a request's own work failed
│   ├── EngineUnavailableError   503  loading, draining or dead; Retry-After
│   │   └── DrainingError        503  ... draining
│   └── DeadlineError            504  the request did not end in time
└── StartupError                 ends the process with exit code 2 and prints its text
    └── ModelError               the model is missing, broken, or of an unsupported kind
"""

from collections.abc import Iterator
from typing import Literal

ErrorType = Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error", "timeout"]
"""What `type` of OpenAI's error format may be."""
_LONGEST_QUOTE = 200
"""Characters of a library's error that are shown."""
EXIT_STARTUP_ERROR = 2
"""Exit code of a process that ends with a StartupError."""


class PacelineError(Exception):
    """Base of all errors whose text is meant for users."""


class ApiError(PacelineError):
    """An error that becomes an HTTP answer."""

    status = 500
    type: ErrorType = "server_error"
    code: str | None = None
    retry_after: int | None = None
    """Seconds for the Retry-After header."""
    rejection: str | None = None
    """Label of `requests_rejected_total`; None for the client's own mistakes."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @staticmethod
    def of(status: int, message: str, param: str | None, code: str | None) -> "ApiError":
        """The error that has become an HTTP answer: of the class with this status and code, or with this status."""
        kinds = [kind for kind in _kinds(ApiError) if kind.status == status]
        kind = next((kind for kind in kinds if kind.code == code), kinds[0] if kinds else ApiError)
        error = kind(message, param)
        error.code = code
        return error


class InvalidRequestError(ApiError):
    """The request is wrong."""

    status = 400
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Prompt and output are longer than the model's context."""

    code = "context_length_exceeded"


class UnsupportedError(InvalidRequestError):
    """The request is valid, but asks for what Paceline does not support (docs/architecture.md#refused-by-name)."""

    code = "unsupported_parameter"


class AuthenticationError(ApiError):
    """The request has no API key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    rejection = "unauthorized"


class ForbiddenError(ApiError):
    """The server, or the tenant, may not do that."""

    status = 403
    type = "permission_error"
    code = "forbidden"
    rejection = "forbidden"


class NotFoundError(ApiError):
    """The model, the path or the stored thing does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class PayloadTooLargeError(ApiError):
    """The body is larger than the server reads."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnsupportedEncodingError(ApiError):
    """The body has a Content-Encoding that the server does not read."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class RequestTimeoutError(ApiError):
    """The client did not send its request within `client_timeout`."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class HeadTooLargeError(ApiError):
    """The headers of a request are larger than the server reads."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class QueueFullError(ApiError):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after = 1
    rejection = "queue_full"


class TenantQueueFullError(QueueFullError):
    """A tenant has as many waiting requests or tokens as it may have."""

    code = "tenant_queue_full"
    rejection = "tenant_queue_full"


class RateLimitError(ApiError):
    """A tenant has used up its limit per minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    rejection = "rate_limited"


class InternalError(ApiError):
    """The request's own work failed."""

    code = "internal_error"


class EngineUnavailableError(ApiError):
    """The engine is loading, draining or dead."""

    status = 503
    code = "engine_unavailable"
    retry_after = 2
    rejection = "loading"


class DrainingError(EngineUnavailableError):
    """The server is shutting down and accepts no new requests."""

    rejection = "draining"


class DeadlineError(ApiError):
    """The request did not end within its timeout."""

    status = 504
    type = "timeout"
    code = "request_timeout"
    rejection = "deadline"


class StartupError(PacelineError):
    """The service cannot start with these settings on this machine."""


class ModelError(StartupError):
    """The model is missing, broken, or of a kind that Paceline does not run."""


def _kinds(base: type[ApiError]) -> Iterator[type[ApiError]]:
    """A class of errors, and all below it."""
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


def rejections() -> set[str]:
    """All labels of `requests_rejected_total`."""
    return {kind.rejection for kind in _kinds(ApiError) if kind.rejection}


def is_fault(error: BaseException) -> bool:
    """Whether an exception is a failure, rather than a wish to end this process or task.

    A panic inside a Rust library is not an Exception, so that nobody catches it by accident, but it is a failure.
    """
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def quoted(error: Exception) -> str:
    """A library's error in short, with the name of its class: some say little else."""
    return f"{type(error).__name__}: {text_of(error)}"


def text_of(error: Exception) -> str:
    """A library's error in short."""
    return " ".join(str(error).split())[:_LONGEST_QUOTE]
