"""What /openapi.json says of the answers, and what FastAPI says without being right."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.edge.answers import AnswerBody, AnthropicErrorAnswer, ErrorAnswer

Answers = dict[int | str, dict[str, Any]]

_ERRORS = {
    400: "The request is wrong, or asks for what is not supported; the error names the field",
    401: "There is no API key, or a wrong one",
    404: "There is no such model, response or path",
    413: "The body is larger than max_body_size",
    429: "The queue is full, or the tenant's limits are reached",
    500: "The request's own work failed",
    503: "The engine is loading, draining or dead",
    504: "The request's time is over",
}
READS_BODY = (400, 401, 404, 413, 500, 503)
RUNS = (*READS_BODY, 429, 504)

_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}

_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}
"""As OpenAPI 3.2, and FastAPI in 3.1, describe the events of a stream."""


def answers(
    model: type[AnswerBody] | None = None,
    errors: tuple[int, ...] = (),
    *,
    stream: str | None = None,
    error: type[AnswerBody] = ErrorAnswer,
) -> Answers:
    """For a route's `responses`: the body of success, unless FastAPI knows it, and the errors.

    `stream`: an example of the events that a route sends instead of the body if it is asked to.
    """
    result: Answers = {}
    if model is not None:
        result[200] = {"model": model, "description": (model.__doc__ or "").strip()}
    if stream is not None:
        content = {"text/event-stream": {"itemSchema": _EVENT, "example": stream}}
        result.setdefault(200, {"description": "Events"})["content"] = content
    for status in sorted(errors):
        retry = {"headers": _RETRY} if status in (429, 503) else {}
        result[status] = {"model": error, "description": _ERRORS[status], **retry}
    return result


def anthropic_answers(model: type[AnswerBody], errors: tuple[int, ...], *, stream: str | None = None) -> Answers:
    """As `answers`, with Anthropic's form of errors."""
    return answers(model, errors, stream=stream, error=AnthropicErrorAnswer)


def install_document(app: FastAPI) -> None:
    """Let /openapi.json leave out the 422 that FastAPI expects of every route with parameters: ours are strings."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operations in whole["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                whole["components"]["schemas"].pop(name, None)
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
