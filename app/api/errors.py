"""Every error as OpenAI's API words it."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import ApiError, InvalidRequestError, NotFoundError


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def error_response(error: ApiError, status: int | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """The HTTP answer that an error becomes."""
    retry = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error), status_code=status or error.status, headers={**(headers or {}), **retry})


def install_error_handlers(app: FastAPI) -> None:
    """Answer our own errors and the framework's in one format. `RequestMiddleware` answers all others."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        request.scope["request_log"].fields["error"] = error.message
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = NotFoundError if error.status_code == 404 else InvalidRequestError
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(kind(message), error.status_code, dict(error.headers or {}))
