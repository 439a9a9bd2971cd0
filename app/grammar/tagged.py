"""A grammar of calls in tags, for functions whose arguments can be written so."""

import json
import re
from collections.abc import Callable
from typing import Any

from ..text.tools.arguments import Schema, resolve, types_of
from ..text.tools.tags import Tags
from .constraint import json_rule

_OF_AN_OBJECT = {"type", "properties", "required", "additionalProperties"}
_DEFINITIONS = ("$defs", "definitions")
_COMMENTS = {"title", "description", "default", "examples", "$comment", "$schema", "deprecated"}
_OTHER_REFERENCE = re.compile(r'"\$ref": "(?!#/\$defs/|#/definitions/)')


def tagged_call(tags: Tags, rule: str, name: str, schema: Schema, literal: Callable[[str], str]) -> list[str] | None:
    """The rule of a call, and the rules that it needs; None if the schema says more than this form can hold.

    `literal` makes the literals of markers. Arguments come in the order of the schema's properties.
    """
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if set(schema) - _OF_AN_OBJECT - set(_DEFINITIONS) - _COMMENTS or not isinstance(properties, dict):
        return None
    if not isinstance(required, list) or any(key not in list(properties) for key in required):
        return None
    if any(set(key) & set('<>"\n') for key in properties):
        return None
    if _OTHER_REFERENCE.search(json.dumps(schema)):
        return None
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    rules, parts = [], []
    for number, (key, one) in enumerate(properties.items()):
        argument = f"{rule}_{number}"
        value = _value(tags, f"{argument}_value", one, definitions, literal)
        if value is None:
            return None
        begin = literal(tags.begin_of(key, _may_be_text(one, definitions)))
        rules += [f"{argument}: {begin} {argument}_value", *value]
        parts.append(argument if key in required else f"{argument}?")
    head, tail = literal(tags.call.replace("{}", name)), literal(tags.end_of_call)
    return [f"{rule}: {' '.join([head, *parts, tail])}", *rules]


def _may_be_text(schema: Any, definitions: Schema) -> bool:
    types = types_of(schema, definitions)
    return not types or "string" in types


def _value(tags: Tags, rule: str, schema: Any, definitions: Schema, literal: Callable[[str], str]) -> list[str] | None:
    """The rule of a value with its end, and the rules that it needs; None if it cannot be written without quotes, or if
    a part of what ends it is a token of its own, for which a text cannot look.
    """
    end, last = literal(tags.end_of_argument), tags.end_of_parameter
    if not _may_be_text(schema, definitions):
        return [f"{rule}: {rule}_json {end}", f"{rule}_json: {json_rule(schema | definitions)}"]
    texts = _texts(schema, definitions)
    if texts is None or any(last in text for text in texts):
        return None
    if texts:
        return [f"{rule}: ({' | '.join(map(json.dumps, texts))}) {end}"]
    if literal(last) != json.dumps(last):
        return None
    return [f'{rule}: {rule}_text "\\n"', f"{rule}_text[suffix={json.dumps(last)}]: /(?s:.*)/"]


def _texts(schema: Any, definitions: Schema) -> list[str] | None:
    """The texts that a schema allows, none if it allows all; None if it is no schema of plain texts."""
    if not isinstance(schema, dict):
        return None
    said = {key: value for key, value in schema.items() if key not in _COMMENTS}
    if set(said) == {"$ref"}:
        return _texts(resolve(said["$ref"], definitions), {})  # without definitions, so that it ends
    kinds = said.pop("type", "string")
    if any(kind not in ("string", "null") for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return None
    if not said:
        return []
    if set(said) == {"anyOf"} and isinstance(said["anyOf"], list):
        return [] if all(_texts(one, definitions) == [] for one in said["anyOf"]) else None
    texts = said["enum"] if set(said) == {"enum"} else [said["const"]] if set(said) == {"const"} else None
    return texts if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) else None
