"""Every error as the API that was called words it: OpenAI's, or Anthropic's on its paths."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.api.edge.request_log import RequestLog
from app.errors import ApiError, InvalidRequestError, NotFoundError

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_ANTHROPIC_DETAILS = {"thread": {"error_code": "thread_unsupported_request"}}
"""By the field that is refused. With this one, the tool runner of Anthropic's client sends whole conversations."""


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error as OpenAI's API writes it."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def anthropic_error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The JSON of an error as Anthropic's API writes it: what field it is about, its message says."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, other)
    what: dict[str, Any] = {"type": kind, "message": error.message}
    if details := _ANTHROPIC_DETAILS.get(error.param or ""):
        what["details"] = details
    return {"type": "error", "error": what, "request_id": request_id}


def error_response(
    error: ApiError, scope: Scope, status: int | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The HTTP answer that an error becomes, to a request of this scope."""
    entry: RequestLog = scope["request_log"]
    entry.rejection = error.rejection
    entry.note_error(error)
    retry = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if scope["path"] == _ANTHROPIC_PATH or scope["path"].startswith(f"{_ANTHROPIC_PATH}/"):
        body = anthropic_error_body(error, entry.request_id)
    else:
        body = error_body(error)
    return JSONResponse(body, status_code=status or error.status, headers={**(headers or {}), **retry})


def install_error_handlers(app: FastAPI) -> None:
    """Answer our own errors and the framework's in one format. `RequestMiddleware` answers all others."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error, request.scope)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = NotFoundError if error.status_code == 404 else InvalidRequestError
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(kind(message), request.scope, error.status_code, dict(error.headers or {}))
