"""The format of Llama 3.2 and 4: a message that begins with [name(key="value", ...), ...], as in Python."""

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from .arguments import Schema, to_json
from .brackets import PYTHON, BracketScanner
from .calls import CallScanner

_BEGINNING = re.compile(r"\[\s{0,99}[A-Za-z_][\w.]{0,99}\(")
_BEGUN = re.compile(r"\[?\s{0,99}([A-Za-z_][\w.]{0,99})?$")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonicParser(CallScanner):
    """Parses the list as a whole, once its end has arrived."""

    markers = ("<|python_tag|>",)

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        super().__init__(schemas)
        self._state = self._at_list

    def _after_marker(self) -> bool:
        return self._at_list()

    def _at_list(self) -> bool:
        self._skip_space()
        if _BEGINNING.match(self._buffer):
            self._brackets = BracketScanner(PYTHON)
            self._state = self._in_list
            return True
        may_begin = not self._ended and _BEGUN.match(self._buffer)
        return False if may_begin else self._give_up()

    def _in_list(self) -> bool:
        end = self._brackets.end_in(self._buffer)
        if end is None:
            return (self._ended or self._brackets.is_broken) and self._give_up()
        try:
            calls = _parse(self._buffer[:end])
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return self._give_up()
        self._take(end)
        for name, arguments in calls:
            self._add_call(name, arguments)
        self._state = self._after_call
        return True

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        self._pending = self._take(self._buffer[0] in ",;")
        self._state = self._at_list
        return True


def _parse(text: str) -> list[tuple[str, str]]:
    """Names, and arguments as JSON. Raises ValueError, TypeError or SyntaxError for what is no list of calls with
    literals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's warnings about "\d" and the like
        tree = ast.parse(text, mode="eval").body
    calls = tree.elts if isinstance(tree, ast.List) else []
    if not calls:
        raise ValueError("not a list of calls")
    return [_call(call) for call in calls]


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    name = ast.unparse(node.func)
    if not _NAME.fullmatch(name):
        raise ValueError("not a name")
    arguments: dict[str, Any] = {}
    for given in node.keywords:
        if given.arg is None:
            raise ValueError("arguments have names")
        arguments[given.arg] = _literal(given.value)
    return name, to_json(arguments)


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
