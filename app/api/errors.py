"""Every error as OpenAI's API words it."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import ApiError, InternalError, InvalidRequestError, NotFoundError

log = logging.getLogger(__name__)


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def _response(error: ApiError, status: int | None = None) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error), status_code=status or error.status, headers=headers)


def _from_validation(error: RequestValidationError) -> InvalidRequestError:
    """Name the field of the first problem; a field that takes several types has one problem for each of them."""
    problem = error.errors()[0]
    path = [part for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not valid JSON: {problem['ctx']['error']}")
    # pydantic names the branches of unions too: they begin at the first part that is no field or index of the client's.
    field = ""
    for part in path:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            field += f".{part}" if field else part
        else:
            break
    return InvalidRequestError(f"{field or 'body'}: {problem['msg']}", field or None)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every kind of error in one format; what is inside the server stays in its log."""

    @app.exception_handler(ApiError)
    async def _api_error(_request: Request, error: ApiError) -> JSONResponse:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _response(_from_validation(error))

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = NotFoundError if error.status_code == 404 else InvalidRequestError
        return _response(kind(f"{request.method} {request.url.path}: {error.detail}"), error.status_code)

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return _response(InternalError("the server failed on this request; see its log"))
