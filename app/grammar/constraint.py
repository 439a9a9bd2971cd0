"""What clients ask outputs to look like, as grammars of llguidance."""

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher

JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \t\r\n]{0,20}"}
"""Between the tokens of JSON. Without a bound, a model can go on with line breaks until it runs out of tokens."""


def json_schema(schema: dict[str, Any] | bool) -> str:
    """JSON that a schema describes."""
    text = json.dumps(schema if isinstance(schema, dict) else ({} if schema else {"not": {}}))
    return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> str:
    """A text that a regular expression matches as a whole."""
    return LLMatcher.grammar_from_regex(pattern)


def choice(texts: Sequence[str]) -> str:
    """One of some texts."""
    return lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def lark(grammar: str) -> str:
    """A text that a grammar in llguidance's dialect of Lark describes; its first rule is `start`."""
    return LLMatcher.grammar_from_lark(grammar)
