"""Unions of objects that are told apart by their `type`, and the refusal of unknown types."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, Discriminator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ...errors import UnsupportedError
from ..edge.body import RequestBody


class Unknown(RequestBody):
    """An object whose type no schema describes. `refuse_unknown` refuses it by its type."""

    model_config = ConfigDict(extra="ignore")
    type: str

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """OpenAPI's document does not allow it."""
        return {"not": {}}


class HostedTool(RequestBody):
    """A tool that the provider of the API would run. The model is not told of it, and so does not call it."""

    model_config = ConfigDict(extra="ignore")
    type: str


def by_type(
    *known: str,
    default: str | None = None,
    others: Mapping[str, str] | None = None,
    hosted: tuple[str, ...] = (),
) -> Discriminator:
    """Selects the model of a union whose tag equals the `type`. "unknown" is the tag of `Unknown`.

    `default`: the tag of objects without a type. `others`: the tags of further types. `hosted`: beginnings of the
    types that have the tag "hosted".
    """
    tags = dict(zip(known, known, strict=True)) | dict(others or {})

    def kind(value: Any) -> str | None:
        given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if given is None:
            return default if isinstance(value, dict) else None
        if not isinstance(given, str):
            return None
        return tags.get(given) or ("hosted" if hosted and given.startswith(hosted) else "unknown")

    return Discriminator(kind, custom_error_type="kind", custom_error_message="Input should be an object with a type")


def refuse_unknown(values: Any, path: str, what: str, also: Callable[[Any, str], None] | None = None) -> None:
    """Raise UnsupportedError for the first object of unknown type, if `values` is a list.

    `also` checks the known ones, and is given their paths.
    """
    for index, value in enumerate(values if isinstance(values, list) else []):
        where = f"{path}[{index}]"
        if isinstance(value, Unknown):
            raise UnsupportedError(f"{where}: {what} of type {value.type!r:.60} is not supported", where)
        if also is not None:
            also(value, where)
