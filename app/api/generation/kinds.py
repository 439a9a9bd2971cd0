"""Things that say by their `type` what they are, in lists of several kinds."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, Discriminator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.api.edge.body import RequestBody
from app.errors import UnsupportedError


class Unknown(RequestBody):
    """A thing of a kind that no schema describes: to be refused by the name of its kind."""

    model_config = ConfigDict(extra="ignore")
    type: str

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For OpenAPI there is no such thing."""
        return {"not": {}}


def by_type(*known: str, default: str | None = None, others: Mapping[str, str] | None = None) -> Discriminator:
    """Tells by `type` which model of a union to use: the one with this tag. "unknown" is the tag of `Unknown`.

    `default`: the tag of what has no type; `others`: the tags of further types.
    """
    tags = dict(zip(known, known, strict=True)) | dict(others or {})

    def kind(value: Any) -> str | None:
        given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if given is None:
            return default if isinstance(value, dict) else None
        return tags.get(given, "unknown") if isinstance(given, str) else None

    return Discriminator(kind, custom_error_type="kind", custom_error_message="Input should be an object with a type")


def refuse_unknown(values: Any, path: str, what: str, also: Callable[[Any, str], None] | None = None) -> None:
    """UnsupportedError for the first thing in a list that is of an unknown kind.

    `also` checks the known ones, and is given their path. What is no list, a text, is left alone.
    """
    for index, value in enumerate(values if isinstance(values, list) else []):
        where = f"{path}[{index}]"
        if isinstance(value, Unknown):
            raise UnsupportedError(f"{where}: {what} of type {value.type!r:.60} is not supported", where)
        if also is not None:
            also(value, where)
