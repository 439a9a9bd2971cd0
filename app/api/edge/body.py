"""From a request's bytes to a validated body, or to an error that names the field.

FastAPI's own parsing is not used: it hides errors that occur while a body is read, and accepts NaN and lone surrogates.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from ...core.nearest import did_you_mean
from ...errors import InvalidRequestError, UnsupportedError
from ...settings import RequestLimits
from .strict_json import check_items, parse_json

Label = Annotated[str, Field(max_length=1024)]
Unsupported = dict[str, tuple[Any, ...]]
"""Known fields that a schema does not declare, with the values that mean the default. These and null are accepted."""
Hints = frozenset[str]


def refused(names: str) -> Unsupported:
    """Fields that have no such value. `names` is separated by blanks."""
    return dict.fromkeys(names.split(), ())


def hints(names: str) -> Hints:
    """Fields that are only hints. `names` is separated by blanks."""
    return frozenset(names.split())


class RequestBody(BaseModel):
    """Base of everything that a client sends. Types are strict, numbers are finite, and null means "not given".

    Undeclared fields are kept, so that `validate` can refuse them by their full name, or report that they are ignored.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    hints: ClassVar[Hints] = frozenset()
    """Fields that are accepted and change nothing, because they describe the caller, or wish for what does not change
    the answer."""
    unsupported: ClassVar[Unsupported] = {}
    """Fields that would change the answer, and are refused. Other undeclared fields are unknown."""
    instead: ClassVar[Mapping[str, str]] = {}
    """What is to be given instead of some of the unsupported fields."""
    token_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that may hold long lists of token ids."""
    limit_of_items: ClassVar[str] = "max_items"
    """The limit on elements of all lists and objects, of `RequestLimits`."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Hints are in OpenAPI's document, too, and unsupported fields with the values that are accepted."""
        whole = handler.resolve_ref_schema(handler(schema))
        known: dict[str, Any] = {name: {"description": "changes nothing"} for name in sorted(cls.hints)}
        known |= {name: {"enum": [*values, None]} for name, values in cls.unsupported.items()}
        whole["properties"] = whole.get("properties", {}) | {
            name: told for name, told in known.items() if name not in cls.model_fields
        }
        return whole

    def check(self) -> None:
        """Raise InvalidRequestError for what types cannot express. Called once the body has been validated."""


Body = TypeVar("Body", bound=RequestBody)


async def read_body(request: Request, model: type[Body], limits: RequestLimits, ignored: set[str] | None) -> Body:
    """The request's body as a `model`, if it has no more elements than allowed. Raises InvalidRequestError.

    `ignored`: see `validate`.
    """
    _check_content_type(request)
    data = _parse_object(await request.body())
    limit = model.limit_of_items
    check_items(data, model.token_fields, getattr(limits, limit), limit)
    return validate(model, data, ignored)


def body_schema(*models: type[RequestBody]) -> dict[str, Any]:
    """For OpenAPI: a route's `openapi_extra`. Of several models, the served one decides which is read."""
    schemas = [model.model_json_schema() for model in models]
    wholes = [_with_definitions(schema, schema.pop("$defs", {})) for schema in schemas]
    whole = wholes[0] if len(wholes) == 1 else {"anyOf": wholes, "examples": [one["example"] for one in wholes]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole}}}}


def _with_definitions(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its definitions inlined: references would be resolved against the whole document."""
    if isinstance(schema, list):
        return [_with_definitions(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        schema = {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
    if "properties" in schema and schema.get("additionalProperties") is True:  # what else comes means nothing
        schema = schema | {"additionalProperties": False}
    return {key: _with_definitions(value, definitions) for key, value in schema.items()}


def _check_content_type(request: Request) -> None:
    """Refuse other types than JSON: browsers send JSON to another site only where CORS allows it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InvalidRequestError("the Content-Type must be application/json")


def _parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Some programs write a byte order mark in front of it, which RFC 8259 lets a reader ignore."""
    data = parse_json(body.removeprefix(BOM_UTF8), "the body")
    if not isinstance(data, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return data


def validate(
    model: type[Body], data: dict[str, Any], ignored: set[str] | None = None, *, is_form: bool = False
) -> Body:
    """A JSON object as a `model`. Raises InvalidRequestError that names the field.

    `ignored` receives the names of unknown fields, such as `messages[].surprise`. If it is None, they are refused.
    `is_form`: numbers and truth values are texts.
    """
    try:
        body = model.model_validate(data, strict=False if is_form else None)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False), data) from None
    for path in _unknown_fields(body, ""):
        if ignored is None:
            hint = did_you_mean(path, model.model_fields)
            raise InvalidRequestError(f"Unrecognized request argument: {path}{hint}", path)
        ignored.add(re.sub(r"\[\d+\]", "[]", path))
    body.check()
    return body


def _unknown_fields(body: RequestBody, path: str) -> Iterator[str]:
    """Fields that no schema knows, here and in nested objects. Raises UnsupportedError for unsupported ones."""
    for name, value in (body.model_extra or {}).items():
        if name in body.unsupported:
            if not asks_for_nothing(value, body.unsupported[name]):
                hint = f"; give {body.instead[name]}" if name in body.instead else ""
                raise UnsupportedError(f"{path}{name} is not supported{hint}", path + name)
        elif name not in body.hints:
            yield path + name
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, RequestBody):
            yield from _unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, RequestBody):
                    yield from _unknown_fields(item, f"{path}{name}[{index}].")


def _refusal(errors: Sequence[ErrorDetails], data: Any) -> InvalidRequestError:
    """The one of pydantic's errors that lies deepest in the data: for a union, pydantic reports every branch.

    Of two at the same place, a type that is not meant says less than what is wrong with a value of a right type.
    """
    paths = [_path(error, data) for error in errors]
    deepest = max(paths, key=len)
    there = [error for error, path in zip(errors, paths, strict=True) if path == deepest]
    told = min(there, key=lambda error: error["type"].endswith("_type"))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in deepest).lstrip(".")
    return InvalidRequestError(f"{param or 'body'}: {told['msg']}", param or None)


def _path(error: ErrorDetails, data: Any) -> list[str | int]:
    """The parts of an error's location that exist in the data. The others are pydantic's names of union branches.

    The name of a missing field counts as existing.
    """
    path: list[str | int] = []
    last = len(error["loc"]) - 1
    for position, part in enumerate(error["loc"]):
        is_missing = position == last and error["type"] == "missing"
        if isinstance(data, dict) and isinstance(part, str) and (part in data or is_missing):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
    return path


def asks_for_nothing(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Whether a value is among the accepted ones; 0 is not False here."""
    return any(type(value) is type(other) and value == other for other in accepted)
