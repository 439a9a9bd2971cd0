"""Errors in the form of the API that was called: Anthropic's on its paths, else OpenAI's."""

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from msgspec import UNSET, UnsetType
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...errors import ApiError, ErrorType, InvalidRequestError, NotFoundError
from .answer import AnswerBody, NamedEvent, json_response
from .request_log import RequestLog


class ErrorDetails(AnswerBody):
    """What went wrong."""

    message: str
    type: ErrorType
    param: str | None
    """The field that is wrong."""
    code: str | None


class ErrorAnswer(AnswerBody):
    """An error as OpenAI's API writes it."""

    error: ErrorDetails


AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
]


class AnthropicFieldDetails(AnswerBody):
    """What is wrong with a field, for clients that can handle it."""

    error_code: Literal["thread_unsupported_request"]


class AnthropicErrorDetails(AnswerBody):
    """What went wrong."""

    type: AnthropicErrorType
    message: str
    details: AnthropicFieldDetails | UnsetType = UNSET


class AnthropicErrorAnswer(NamedEvent, kw_only=True):
    """An error as Anthropic's API writes it."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetails
    request_id: str


_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES: dict[int, AnthropicErrorType] = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_ANTHROPIC_DETAILS = {"thread": AnthropicFieldDetails("thread_unsupported_request")}
"""By the refused field. With this one, the tool runner of Anthropic's client sends whole conversations instead."""


def error_body(error: ApiError, scope: Mapping[str, Any] | None = None) -> AnswerBody:
    """The body of an error: in Anthropic's form if a request of this scope went to its API, else in OpenAI's."""
    if scope is not None and f"{scope['path']}/".startswith(f"{_ANTHROPIC_PATH}/") and "request_log" in scope:
        return anthropic_error_body(error, scope["request_log"].request_id)
    return ErrorAnswer(ErrorDetails(error.message, error.type, error.param, error.code))


def anthropic_error_body(error: ApiError, request_id: str) -> AnthropicErrorAnswer:
    """The body of an error in Anthropic's form, where only the message names the field that is wrong."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    details = _ANTHROPIC_DETAILS.get(error.param or "", UNSET)
    return AnthropicErrorAnswer(error=AnthropicErrorDetails(kind, error.message, details), request_id=request_id)


def error_response(
    error: ApiError, scope: Mapping[str, Any], status: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The HTTP answer for an error, to a request of this scope."""
    entry: RequestLog = scope["request_log"]
    entry.rejection = error.rejection
    entry.note_error(error)
    own = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        own["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 15.5.2
    return json_response(error_body(error, scope), status or error.status, {**(headers or {}), **own})


def install_error_handlers(app: FastAPI) -> None:
    """Answer our own errors and the framework's in one form. `RequestMiddleware` handles all other exceptions."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        return error_response(error, request.scope)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        kind = NotFoundError if error.status_code == 404 else InvalidRequestError
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(kind(message), request.scope, error.status_code, dict(error.headers or {}))
