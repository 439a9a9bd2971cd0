"""The constraints that clients put on outputs, as grammars of llguidance."""

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher

from .schema import adapt

_JSON_OPTIONS = {"whitespace_pattern": r"[ \t\r\n]{0,20}"}
"""White space between the tokens of JSON. Without a bound, a model can write line breaks until its tokens run out."""


class GrammarError(ValueError):
    """A grammar cannot be followed. The text is the reason."""


def json_schema(schema: dict[str, Any] | bool) -> str:
    """A grammar of the JSON that a schema describes. Raises ValueError if no grammar can be exact."""
    schema = schema if isinstance(schema, dict) else ({} if schema else {"not": {}})
    return f"start: {json_rule(schema)}"


def json_rule(schema: dict[str, Any]) -> str:
    """What a rule of a Lark grammar says for JSON that a schema describes."""
    return f"%json {json.dumps({**adapt(schema), 'x-guidance': _JSON_OPTIONS})}"


def json_object() -> str:
    """A grammar of any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> str:
    """A grammar of the texts that a regular expression matches as a whole."""
    (grammar,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
    return str(grammar["lark_grammar"])


def choice(texts: Sequence[str]) -> str:
    """A grammar of exactly these texts."""
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
