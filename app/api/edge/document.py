"""The answers in /openapi.json: their statuses and schemas."""

from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .answer import AnswerBody
from .errors import ErrorAnswer

Answers = dict[int | str, dict[str, Any]]

_ERRORS = {
    400: "The request is wrong, or asks for what is not supported; the error names the field",
    401: "There is no API key, or a wrong one",
    403: "The server, or the key's owner, may not do that",
    404: "There is no such model, response, stream or path",
    408: "The body did not arrive within client_timeout",
    413: "The body is larger than max_body_size",
    415: "The body has a Content-Encoding other than gzip and zstd",
    429: "The queue is full, or the tenant's limits are reached",
    500: "The request's own work failed",
    503: "The engine is loading, draining or dead",
    504: "The request's time is over",
}
ANY = (400, 401, 500, 503)
"""Errors that any path but those of probes may answer with."""
READS_BODY = (*ANY, 404, 408, 413, 415)
RUNS = (*READS_BODY, 429, 504)

_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def answers(
    body: type[AnswerBody] | None,
    errors: tuple[int, ...] = ANY,
    *,
    events: tuple[type[AnswerBody], ...] = (),
    error: type[AnswerBody] = ErrorAnswer,
) -> Answers:
    """For a route's `responses`: the body of a success, and the statuses of errors.

    `events`: what the data of server-sent events may be, for a route that streams. `error`: the body of errors.
    """
    result: Answers = {}
    content: dict[str, Any] = {}
    if body is not None:
        result[200] = {"description": (body.__doc__ or "").strip(), "content": content}
        content |= _json(body)
    if events:
        result.setdefault(200, {"description": "Events", "content": content})
        content["text/event-stream"] = {"itemSchema": _event(events)}
    for status in sorted(errors):
        retry = {"headers": _RETRY} if status in (429, 503) else {}
        result[status] = {"description": _ERRORS[status], "content": _json(error), **retry}
    return result


def _json(body: type[AnswerBody]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(body)}}


def _event(data: tuple[type[AnswerBody], ...]) -> dict[str, Any]:
    """The events of a stream, in the form that OpenAPI 3.2 defines and FastAPI uses in 3.1."""
    content = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_reference(one) for one in data]}}
    properties = {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON, or [DONE]", **content},
    }
    return {"type": "object", "properties": properties, "required": ["data"]}


def _reference(body: type[AnswerBody]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _subclasses(base: type[AnswerBody]) -> Iterator[type[AnswerBody]]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)


def _schemas() -> dict[str, Any]:
    """The JSON schemas of all answers, by name."""
    bodies = list(_subclasses(AnswerBody))
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    for body in bodies:
        schema = schemas[body.__name__]
        if kinds := body.__subclasses__():
            schemas[body.__name__] = {"description": schema["description"], "anyOf": [_reference(one) for one in kinds]}
            continue
        for name, field in schema["properties"].items():
            if field.pop("default", field) is not field:  # fields with a default are always sent
                schema["required"].append(name)
    return schemas


def install_document(app: FastAPI) -> None:
    """Make /openapi.json: with our schemas, and without the 422 that FastAPI adds to every route with parameters."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operations in whole["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            whole["components"] = {"schemas": _schemas()}
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
