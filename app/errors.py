"""Every error that a user can meet, as one tree: one class for each HTTP outcome.

PacelineError
├── ApiError                     becomes an HTTP answer in OpenAI's error format
│   ├── InvalidRequestError      400  the request is wrong; `param` names the field
│   │   ├── ContextLengthError   400  prompt and output are longer than the model's context
│   │   └── UnsupportedError     400  the request is right, but Paceline cannot do it
│   ├── AuthenticationError      401  no key, or a wrong one
│   ├── NotFoundError            404
│   ├── PayloadTooLargeError     413
│   ├── RequestTimeoutError      408  the client is too slow in sending
│   ├── HeadTooLargeError        431  headers and all that is not body
│   ├── QueueFullError           429  too many requests are open; Retry-After
│   │   └── TenantQueueFullError 429  ... of this tenant
│   ├── RateLimitError           429  a tenant's limit for a minute is used up; Retry-After
│   ├── InternalError            500  a request's own work failed
│   ├── EngineUnavailableError   503  loading, draining or dead; Retry-After
│   │   └── DrainingError        503  ... draining
│   └── DeadlineError            504  the request's time is over
└── StartupError                 ends the process with exit code 2 and its text
    └── ModelError               the model is missing, broken, or of an unsupported kind
"""

EXIT_STARTUP_ERROR = 2
"""Exit code of a process that meets a StartupError."""


class PacelineError(Exception):
    """Base of all errors with a text that is meant for users."""


class ApiError(PacelineError):
    """An error that becomes an HTTP answer."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after: int | None = None
    """Seconds for the Retry-After header."""
    rejection: str | None = None
    """How metrics call it that a request was refused for this; None if the request itself is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(ApiError):
    """The request is wrong."""

    status = 400
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Prompt and output are longer than the model's context."""

    code = "context_length_exceeded"


class UnsupportedError(InvalidRequestError):
    """The request is understood, and refused by name."""

    code = "unsupported_parameter"


class AuthenticationError(ApiError):
    """There is no key with the request, or none that is known."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    rejection = "unauthorized"


class NotFoundError(ApiError):
    """No such model or route."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class PayloadTooLargeError(ApiError):
    """The body is larger than the server reads."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class RequestTimeoutError(ApiError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class HeadTooLargeError(ApiError):
    """What a request has beside its body is larger than the server reads."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class QueueFullError(ApiError):
    """More requests are open than the queue admits."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after = 1
    rejection = "queue_full"


class TenantQueueFullError(QueueFullError):
    """More requests of one tenant wait than it may have."""

    code = "tenant_queue_full"
    rejection = "tenant_queue_full"


class RateLimitError(ApiError):
    """A tenant has used what it may use a minute."""

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
    """The server takes no new requests."""

    rejection = "draining"


class DeadlineError(ApiError):
    """The request's time was over before it had ended."""

    status = 504
    type = "timeout"
    code = "request_timeout"
    rejection = "deadline"


class StartupError(PacelineError):
    """The service cannot start with these settings on this machine."""


class ModelError(StartupError):
    """The model is missing, broken, or of a kind that Paceline does not run."""


def is_fault(error: BaseException) -> bool:
    """Whether something has failed: rather than that this process or task is to end.

    When a Rust library fails inside, what is raised is no Exception, so that nobody catches it by accident.
    """
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
