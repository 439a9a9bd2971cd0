"""Arguments that models write as plain text: the tool's schema says what JSON they are."""

import json
import re
from typing import Any

Schema = dict[str, Any]
_NAMES = {"true": "true", "false": "false", "null": "null", "none": "null"}
"""Constants as models write them in JSON or in Python, in small letters."""
_MAX_DEPTH = 16
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def to_json(value: Any) -> str:
    """A value as JSON text in which other letters than ASCII stand as they are.

    Half of a surrogate pair, which is no text but can be written in JSON, stays an escape. Raises ValueError for NaN
    and infinity.
    """
    return escape_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))


def escape_surrogates(json_text: str) -> str:
    """JSON text that can be sent, with an escape for each half of a surrogate pair."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json_text)


def property_of(schema: Schema, name: str) -> Any:
    """The schema of one of an object's properties; None if it says nothing of it."""
    properties = schema.get("properties")
    return properties.get(name) if isinstance(properties, dict) else None


def types_of(schema: Any, root: Schema, depth: int = 0) -> frozenset[str]:
    """JSON Schema's names of the types that a schema allows; none if it does not restrict them.

    `root` is the schema that `$ref` points into.
    """
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return frozenset()
    if "$ref" in schema:
        return types_of(resolve(schema["$ref"], root), root, depth + 1)
    if (named := schema.get("type")) is not None:
        return frozenset(kind for kind in (named if isinstance(named, list) else [named]) if isinstance(kind, str))
    if "const" in schema or isinstance(schema.get("enum"), list):
        return frozenset(map(_type_of, [schema["const"]] if "const" in schema else schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found = [types_of(one, root, depth + 1) for one in schema[key]]
            return frozenset().union(*found) if all(found) else frozenset()
    parts = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    return next(filter(None, (types_of(one, root, depth + 1) for one in parts)), frozenset())


def resolve(reference: Any, root: Schema) -> Any:
    """What a `$ref` of the form "#/$defs/name" points to; None if there is no such place."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place


def as_json(text: str, types: frozenset[str]) -> str:
    """A value as JSON: of one of the types if it can be read so, else a string."""
    if types - {"string"}:
        value = _NAMES.get(text.strip().lower(), text.strip())
        try:
            kind = _type_of(json.loads(value, parse_constant=_refuse))
        except (ValueError, RecursionError):
            kind = "string"
        if kind != "string" and (kind in types or (kind == "integer" and "number" in types)):
            return value
        if kind == "number" and "integer" in types and float(value).is_integer():
            return value
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
