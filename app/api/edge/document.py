"""What /openapi.json says of the answers."""

from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.edge.answer import AnswerBody
from app.api.edge.errors import ErrorAnswer

Answers = dict[int | str, dict[str, Any]]

_ERRORS = {
    400: "The request is wrong, or asks for what is not supported; the error names the field",
    401: "There is no API key, or a wrong one",
    404: "There is no such model, response, stream or path",
    408: "The body did not arrive within client_timeout",
    413: "The body is larger than max_body_size",
    429: "The queue is full, or the tenant's limits are reached",
    500: "The request's own work failed",
    503: "The engine is loading, draining or dead",
    504: "The request's time is over",
}
ANY = (400, 401, 500, 503)
"""The statuses of errors that every path may answer with, but for those of probes."""
READS_BODY = (*ANY, 404, 408, 413)
RUNS = (*READS_BODY, 429, 504)

_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def answers(
    body: type[AnswerBody] | None,
    errors: tuple[int, ...] = ANY,
    *,
    events: tuple[type[AnswerBody], ...] = (),
    error: type[AnswerBody] = ErrorAnswer,
) -> Answers:
    """For a route's `responses`: the body of a success and the errors.

    `events`: the data of the server-sent events that a route sends instead of the body if it is asked to.
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
    """As OpenAPI 3.2, and FastAPI in 3.1, describe the events of a stream."""
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
    """JSON schemas of everything that is sent, by name."""
    bodies = list(_subclasses(AnswerBody))
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    for body in bodies:
        schema = schemas[body.__name__]
        if kinds := body.__subclasses__():
            schemas[body.__name__] = {"description": schema["description"], "anyOf": [_reference(one) for one in kinds]}
            continue
        for name, field in schema["properties"].items():
            if field.pop("default", field) is not field:  # a default spares us code; it is sent all the same
                schema["required"].append(name)
    return schemas


def install_document(app: FastAPI) -> None:
    """Let /openapi.json leave out the 422 that FastAPI expects of every route with parameters: ours are strings."""

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
