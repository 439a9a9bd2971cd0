"""Parses tool calls in text: the part that all formats share."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..message_parser import Scanner, ToolCallDelta, length_before
from .arguments import Schema, escape_surrogates, to_json
from .brackets import JSON, LENIENT_JSON, BracketScanner

_SPACE = r"\s{0,99}"
_HEAD = re.compile(
    rf'\{{{_SPACE}"name"{_SPACE}:{_SPACE}("(?:[^"\\]|\\.){{1,256}}"){_SPACE},'
    rf'{_SPACE}"(?:arguments|parameters)"{_SPACE}:{_SPACE}(?=\{{)'
)
"""The beginning of a call whose arguments can be streamed. The pattern is tried at each piece of text, so its length is
bounded; a longer beginning is parsed when the whole object is there."""
_REST = re.compile(r',\s*"')
_FIELDS = frozenset(("name", "tool_name", "id", "tool_call_id", "type", "arguments", "parameters"))
"""Of an object that is a call, though it may have no arguments."""


class CallScanner(Scanner):
    """Separates content from calls, which stand behind markers. Text behind a marker that is no call becomes content,
    together with the marker.

    Subclasses define the markers and the text that follows them.
    """

    markers: tuple[str, ...]

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        """`schemas`: of arguments, by the function's name, for formats that write arguments as plain text."""
        super().__init__()
        self._schemas = schemas or {}
        self._state = self._in_content
        self._num_calls = 0
        self._pending = ""
        """Text that was taken for the beginning of a call, and becomes content if no call follows."""
        self._brackets = BracketScanner(JSON)

    # ------------------------------------------------------------------ content

    def _in_content(self) -> bool:
        at, marker = min(
            ((at, marker) for marker in self.markers if (at := self._buffer.find(marker)) >= 0), default=(-1, "")
        )
        if at >= 0:
            before = self._take(at)
            text = before.rstrip()
            self._add_content(text)
            self._pending = before[len(text) :] + self._take(len(marker))
            self._state = self._after_marker
            return True
        # White space in front of a call is dropped.
        known = len(self._buffer)
        if not self._ended:
            known = len(self._buffer[: length_before(self._buffer, self.markers)].rstrip())
        self._add_content(self._take(known))
        return False

    def _add_content(self, text: str) -> None:
        if text.strip() or not self._num_calls:  # white space behind the last call is dropped, too
            self._delta.content += text

    def _after_marker(self) -> bool:
        """Parse the text between the marker and the call."""
        raise NotImplementedError

    def _give_up(self) -> bool:
        """There is no call. The text that was taken for its beginning is content, and the rest is parsed anew."""
        self._delta.content += self._pending
        self._pending = ""
        self._state = self._in_content
        return True

    def _skip_space(self) -> None:
        self._pending += self._take(len(self._buffer) - len(self._buffer.lstrip()))

    # ------------------------------------------------------------------ calls as JSON objects

    def _expect_calls(self) -> bool:
        """Expect an object, or a list of them."""
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        if self._buffer[0] == "[":
            self._pending += self._take(1)
        self._state = self._expect_object
        return True

    def _after_call(self) -> bool:
        """Parse the text behind a call, where another one may follow."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        if self._buffer[0] in ",;":
            self._pending = self._take(1)
            self._state = self._expect_object
        elif self._buffer[0] == "{":
            self._state = self._expect_object
        elif self._buffer[0] == "]":
            self._take(1)
        else:
            self._state = self._in_content
        return True

    def _expect_object(self) -> bool:
        """Expect {"name": ..., "arguments": ...}; anything else is no call."""
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        if self._buffer[0] != "{":
            return self._give_up()
        self._brackets = BracketScanner(JSON)
        self._state = self._in_object
        return True

    def _in_object(self) -> bool:
        """Wait for the name, or for the whole object if it does not begin with the name."""
        if match := _HEAD.match(self._buffer):
            try:
                name = _name(json.loads(match[1]))
            except ValueError:
                return self._give_up()
            self._take(match.end())
            self._start_call(name, self._behind_arguments)
            return True
        end = self._brackets.end_in(self._buffer)
        if end is None:
            return (self._ended or self._brackets.is_broken) and self._give_up()
        try:
            name, arguments = _read_call(self._buffer[:end])
        except (ValueError, KeyError, RecursionError):
            return self._give_up()
        self._take(end)
        self._add_call(name, arguments)
        self._state = self._after_call
        return True

    def _add_call(self, name: str, arguments: str) -> None:
        """Add a complete call."""
        self._delta.tool_calls += [
            ToolCallDelta(self._num_calls, name=name),
            ToolCallDelta(self._num_calls, arguments),
        ]
        self._end_call()

    def _start_call(self, name: str, then: Callable[[], bool]) -> None:
        """Begin a call whose arguments follow as an object. `then` is the state behind them."""
        self._delta.tool_calls.append(ToolCallDelta(self._num_calls, name=name))
        self._brackets = BracketScanner(LENIENT_JSON)
        self._then = then
        self._state = self._in_arguments

    def _end_call(self) -> None:
        self._num_calls += 1
        self._pending = ""

    def _in_arguments(self) -> bool:
        """Pass the arguments on as they arrive."""
        end = self._brackets.end_in(self._buffer)
        piece = self._take(len(self._buffer) if end is None else end)
        if piece:
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, piece))
        if end is None:
            self._brackets.forget()
            return False
        self._end_call()
        self._state = self._then
        return True

    def _behind_arguments(self) -> bool:
        """Parse the object's closing brace, or fields that models write in front of it, such as an id."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer or (not self._ended and self._buffer.rstrip() == ","):
            return False
        self._state = self._after_call
        if self._buffer[0] == "}":
            self._take(1)
        elif _REST.match(self._buffer):
            self._brackets = BracketScanner(JSON, depth=1)
            self._state = self._in_rest
        return True

    def _in_rest(self) -> bool:
        """Skip further fields of the object. Without a closing brace they are not fields but content."""
        end = self._brackets.end_in(self._buffer)
        if end is None and not self._ended and not self._brackets.is_broken:
            return False
        self._take(end or 0)
        self._state = self._after_call
        return True


def _read_call(text: str) -> tuple[str, str]:
    """Name and arguments of a call. Raises ValueError, KeyError or RecursionError for text that is no call.

    Some models write the arguments as JSON in a string, or leave them out.
    """
    call = json.loads(text)
    name = _name(call["name"] if "name" in call else call["tool_name"])
    arguments = call.get("arguments", call.get("parameters"))
    if arguments is None and call.keys() - _FIELDS:
        raise ValueError("other data that has a name")
    if isinstance(arguments, str):
        return name, escape_surrogates(arguments)
    return name, to_json({} if arguments is None else arguments)


def _name(value: Any) -> str:
    """The name of a function. Raises ValueError for what is no text."""
    if not isinstance(value, str):
        raise ValueError("a name is a string")
    value.encode()  # JSON can also write half of a surrogate pair
    return value
