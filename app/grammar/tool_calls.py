"""Calls of tools as a grammar, so that their arguments match the tools' schemas."""

import json
import re
from collections.abc import Mapping
from typing import Any

from app.grammar.constraint import JSON_OPTIONS, lark
from app.text.tokenizer import Tokenizer
from app.text.tools.formats import ToolFormat


def tool_calls(format_: ToolFormat, schemas: Mapping[str, dict[str, Any]], several: bool, tokenizer: Tokenizer) -> str:
    """One call, or `several`, of functions whose arguments have these schemas, as a format writes them."""
    calls = [f"call{index}" for index in range(len(schemas))]
    one = "call"
    lines = [
        "start: " + _join(_literal(format_.begin, format_, tokenizer), _repeated(one, format_, several, tokenizer),
                          _literal(format_.end, format_, tokenizer)),
        f"{one}: {' | '.join(calls)}",
    ]  # fmt: skip
    for index, (name, schema) in enumerate(schemas.items()):
        before = _literal(f"{format_.before_name}{json.dumps(name)}{format_.before_arguments}", format_, tokenizer)
        lines.append(f"call{index}: {_join(before, f'args{index}', _literal(format_.behind, format_, tokenizer))}")
        lines.append(f"args{index}: %json {json.dumps({**schema, 'type': 'object', 'x-guidance': JSON_OPTIONS})}")
    return lark("\n".join(lines))


def _repeated(rule: str, format_: ToolFormat, several: bool, tokenizer: Tokenizer) -> str:
    return f"{rule} ({_literal(format_.between, format_, tokenizer)} {rule})*" if several else rule


def _literal(text: str, format_: ToolFormat, tokenizer: Tokenizer) -> str:
    """A text, in which markers may be special tokens of the model: these are written as <[id]>."""
    special = {marker: id_ for marker in format_.markers if (id_ := tokenizer.special_id(marker)) is not None}
    pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    return _join(*(f"<[{special[piece]}]>" if piece in special else json.dumps(piece) for piece in pieces if piece))


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))
