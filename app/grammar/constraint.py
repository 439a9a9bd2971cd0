"""The constraints that clients put on outputs, as grammars of llguidance."""

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher

JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \t\r\n]{0,20}"}
"""White space between the tokens of JSON. Without a bound, a model can write line breaks until its tokens run out."""


def json_schema(schema: dict[str, Any] | bool) -> str:
    """A grammar of the JSON that a schema describes."""
    text = json.dumps(schema if isinstance(schema, dict) else ({} if schema else {"not": {}}))
    return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)


def json_object() -> str:
    """A grammar of any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> str:
    """A grammar of the texts that a regular expression matches as a whole."""
    return LLMatcher.grammar_from_regex(pattern)


def choice(texts: Sequence[str]) -> str:
    """A grammar of exactly these texts."""
    return lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def lark(grammar: str) -> str:
    """A grammar from llguidance's dialect of Lark, in which the first rule is `start`."""
    return LLMatcher.grammar_from_lark(grammar)
