"""A grammar of tool calls, so that their arguments match the tools' schemas."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ..text.tokenizer import Tokenizer
from ..text.tools.formats import ToolFormat
from .constraint import json_rule
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

    def literal(text: str) -> str:
        return _literal(text, format_, tokenizer)

    repeated = f"call ({literal(format_.between)} call)*" if several else "call"
    lines = [
        f"start: {_join(first, '(calls | answer)' if answer else 'calls')}",
        *rules,
        *([f"answer: {answer}"] if answer else []),
        f"calls: {_join(literal(format_.begin), repeated, literal(format_.end))}",
        f"call: {' | '.join(f'call{index}' for index in range(len(schemas)))}",
    ]
    for index, (name, schema) in enumerate(schemas.items()):
        tagged = tagged_call(f"call{index}", name, schema, literal) if format_.tagged else None
        if tagged is not None:
            lines += tagged
            continue
        head = literal(f"{format_.before_name}{json.dumps(name)}{format_.before_arguments}")
        lines.append(f"call{index}: {_join(head, f'args{index}', literal(format_.after_arguments))}")
        lines.append(f"args{index}: {json_rule({**schema, 'type': 'object'})}")
    return "\n".join(lines)


def _literal(text: str, format_: ToolFormat, tokenizer: Tokenizer) -> str:
    """A text as a literal of the grammar. Markers that are tokens of their own are written as <[id]>."""
    ids = {marker: id_ for marker in format_.markers if (id_ := tokenizer.added_id(marker)) is not None}
    pieces = re.split("(" + "|".join(map(re.escape, ids)) + ")", text) if ids else [text]
    return _join(*(f"<[{ids[piece]}]>" if piece in ids else json.dumps(piece) for piece in pieces if piece))


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))
