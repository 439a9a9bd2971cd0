"""A grammar of tool calls, so that their arguments match the tools' schemas."""

import json
from collections.abc import Mapping
from typing import Any

from ..text.tokenizer import Tokenizer
from ..text.tools.formats import ToolFormat
from .constraint import json_rule
from .literals import join, literal
from .tagged import tagged_call


def tool_calls(
    format_: ToolFormat,
    schemas: Mapping[str, dict[str, Any]],
    several: bool,
    tokenizer: Tokenizer,
    before: tuple[str, list[str]] = ("", []),
    answer: str = "",
) -> str:
    """A grammar of one call, or of `several`, of functions whose arguments have these schemas, in a format.

    `before`: an expression in front of the calls, with its rules; see `app.grammar.reasoning`. `answer`: the expression
    of a rule that the text may match instead of calls.
    """
    first, rules = before

    def fixed(text: str) -> str:
        return literal(text, format_.markers, tokenizer)

    repeated = f"call ({fixed(format_.between)} call)*" if several else "call"
    lines = [
        f"start: {join(first, '(calls | answer)' if answer else 'calls')}",
        *rules,
        *([f"answer: {join(fixed(format_.before_answer), answer)}"] if answer else []),
        f"calls: {join(fixed(format_.begin), repeated, fixed(format_.end))}",
        f"call: {' | '.join(f'call{index}' for index in range(len(schemas)))}",
    ]
    for index, (name, schema) in enumerate(schemas.items()):
        tagged = tagged_call(format_.tags, f"call{index}", name, schema, fixed) if format_.tags else None
        if tagged is not None:
            lines += tagged
            continue
        if answer and format_.looks_like_json:
            lines.append(f"call{index}: {json_rule(_call_schema(format_, name, schema))}")
            continue
        end = fixed(format_.after_arguments)
        lines.append(f"call{index}: {join(fixed(format_.head(name)), f'args{index}', end)}")
        lines.append(f"args{index}: {json_rule({**schema, 'type': 'object'})}")
    return "\n".join(lines)


def _call_schema(format_: ToolFormat, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of whole calls.

    A call beside an answer that is JSON, too, has to be made of the same lexemes: the library takes the longest lexeme,
    so that it would never find the answer behind the beginning of a literal.
    """
    call = json.loads(f"{format_.before_name}{json.dumps(name)}{format_.before_arguments}{{}}{format_.after_arguments}")
    (key,) = (key for key, value in call.items() if value == {})
    arguments = {**_moved(schema, f"#/properties/{key}"), "type": "object"}
    properties = {one: arguments if one == key else {"const": value} for one, value in call.items()}
    return {"type": "object", "properties": properties, "required": [*call], "additionalProperties": False}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references hold where it stands at a place in another schema."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _moved_keyword(key, value, place) for key, value in schema.items()}


def _moved_keyword(key: str, value: Any, place: str) -> Any:
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return place + value[1:]
    return value if key in ("const", "enum") else _moved(value, place)
