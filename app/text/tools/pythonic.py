"""[name(key="value", ...), ...]: calls as Python writes them, as of Llama 3.2 and 4; a message that begins so."""

import ast
import re
from typing import Any

from app.text.tools.calls import CallScanner

_BEGINNING = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
_BEGUN = re.compile(r"\[?\s*([A-Za-z_][\w.]*)?$")
_JSON_NAMES = {"true": True, "false": False, "null": None}
_OPENING, _CLOSING = "([{", ")]}"


class PythonicParser(CallScanner):
    """The list is read as a whole, when it has come to its end."""

    markers = ("<|python_tag|>",)

    def __init__(self) -> None:
        super().__init__()
        self._state = self._at_list

    def _after_marker(self) -> bool:
        return self._at_list()

    def _at_list(self) -> bool:
        self._skip_space()
        if not _BEGINNING.match(self._buffer):
            may_begin = not self._ended and _BEGUN.match(self._buffer)
            return False if may_begin else self._give_up()
        end = _end_of_list(self._buffer)
        if end is None:
            return self._ended and self._give_up()
        try:
            calls = _parse(self._buffer[:end])
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return self._give_up()
        self._take(end)
        for name, arguments in calls:
            self._add_call(name, arguments)
        self._state = self._in_content
        return True


def _end_of_list(text: str) -> int | None:
    """Where the list that a text begins with ends, if it does."""
    depth, quote, is_escaped = 0, "", False
    for at, char in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif quote:
            is_escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
            if depth == 0:
                return at + 1
    return None


def _parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments; ValueError or SyntaxError for what is not a list of calls of literals."""
    tree = ast.parse(text, mode="eval").body
    calls = tree.elts if isinstance(tree, ast.List) else []
    if not calls or not all(isinstance(call, ast.Call) and not call.args for call in calls):
        raise ValueError("not a list of calls")
    return [
        (ast.unparse(call.func), {str(given.arg): _literal(given.value) for given in call.keywords})
        for call in calls
        if isinstance(call, ast.Call)
    ]


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("keys are strings")
        return {key: _literal(value) for key, value in zip(keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError("not JSON")
    return value
