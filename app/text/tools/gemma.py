"""The formats of Gemma: call:NAME{key:value,...} between markers, with texts between marks of their own."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .arguments import Schema, to_json
from .calls import CallScanner

_NAME = re.compile(r"\s{0,9}call:([\w.-]{1,256})\s{0,9}(?=\{)")
_NAME_BEGUN = re.compile(r"\s{0,9}(c(a(l(l(:[\w.-]{0,256}\s{0,9})?)?)?)?)?\Z")
_PLAIN = re.compile(r"[^,:\[\]{}]*")
_DEPTH = 100


class Marks(NamedTuple):
    """The texts around a call, and the one in front of and behind a text."""

    opening: str
    closing: str
    quote: str


FUNCTION_GEMMA = Marks("<start_function_call>", "<end_function_call>", "<escape>")
GEMMA4 = Marks("<|tool_call>", "<tool_call|>", '<|"|>')


class GemmaParser(CallScanner):
    """Parses each call as a whole, once its end has arrived."""

    def __init__(self, schemas: Mapping[str, Schema] | None = None, *, marks: Marks) -> None:
        super().__init__(schemas)
        self.markers = (marks.opening,)
        self._marks = marks
        self._searched = 0

    def _after_marker(self) -> bool:
        if match := _NAME.match(self._buffer):
            self._name = match[1]
            self._pending += self._take(match.end())
            self._searched = 0
            self._state = self._in_call
            return True
        return False if not self._ended and _NAME_BEGUN.match(self._buffer) else self._give_up()

    def _in_call(self) -> bool:
        closing = self._marks.closing
        end = self._buffer.find(closing, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(closing))
            return self._ended and self._give_up()
        try:
            arguments = to_json(_Reader(self._buffer[:end], self._marks.quote).whole())
        except (ValueError, RecursionError):
            return self._give_up()
        self._take(end + len(closing))
        self._add_call(self._name, arguments)
        self._state = self._in_content
        return True


class _Reader:
    """Reads an object. Raises ValueError for what is none."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote, self._at = text, quote, 0

    def whole(self) -> Any:
        value = self._value(0)
        if self._text[self._at :].strip() or not isinstance(value, dict):
            raise ValueError("not an object")
        return value

    def _value(self, depth: int) -> Any:
        self._space()
        if depth > _DEPTH:
            raise ValueError("too deep")
        if self._takes(self._quote):
            return self._until_quote()
        if self._takes("["):
            return self._items("]", depth, is_object=False)
        if self._takes("{"):
            return dict(self._items("}", depth, is_object=True))
        match = _PLAIN.match(self._text, self._at)
        plain = "" if match is None else match[0]
        self._at += len(plain)
        try:
            return json.loads(plain)
        except ValueError:
            return plain.strip()

    def _items(self, closing: str, depth: int, is_object: bool) -> list[Any]:
        items: list[Any] = []
        while True:
            self._space()
            if self._takes(closing):
                return items
            if items and not self._takes(","):
                raise ValueError("a comma is missing")
            value = self._value(depth + 1)
            if is_object:
                self._space()
                if not self._takes(":") or not isinstance(value, str) or not value:
                    raise ValueError("a key is missing")
                value = value, self._value(depth + 1)
            items.append(value)

    def _until_quote(self) -> str:
        end = self._text.find(self._quote, self._at)
        if end < 0:
            raise ValueError("a text has no end")
        text, self._at = self._text[self._at : end], end + len(self._quote)
        return text

    def _takes(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _space(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
