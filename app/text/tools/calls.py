"""Reading tool calls out of text: what all formats have in common."""

import json
import re

from app.text.message_parser import Scanner, ToolCallDelta, length_before

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""The beginning of a call whose arguments can be passed on as they come."""


class CallScanner(Scanner):
    """Content, and calls behind markers. A call that is none is content again, marker and all.

    Subclasses say what marks a call, and what follows the marker.
    """

    markers: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self._state = self._in_content
        self._num_calls = 0
        self._pending = ""
        """What has been taken off since the marker, and is content if no call comes of it."""
        self._json = JsonScanner()

    # ------------------------------------------------------------------ content

    def _in_content(self) -> bool:
        at, marker = min(
            ((at, marker) for marker in self.markers if (at := self._buffer.find(marker)) >= 0), default=(-1, "")
        )
        if at >= 0:
            self._add_content(self._take(at).rstrip())
            self._pending = self._take(len(marker))
            self._state = self._after_marker
            return True
        # White space before a call belongs to nobody.
        known = len(self._buffer)
        if not self._ended:
            known = len(self._buffer[: length_before(self._buffer, self.markers)].rstrip())
        self._add_content(self._take(known))
        return False

    def _add_content(self, text: str) -> None:
        if text.strip() or not self._num_calls:  # white space behind the last call belongs to nobody, too
            self._delta.content += text

    def _after_marker(self) -> bool:
        """What stands between the marker and the call."""
        raise NotImplementedError

    def _after_call(self) -> bool:
        """What stands behind a call."""
        raise NotImplementedError

    def _give_up(self) -> bool:
        """No call: what was taken for the beginning of one is content, and what follows is read anew."""
        self._delta.content += self._pending
        self._pending = ""
        self._state = self._in_content
        return True

    def _skip_space(self) -> None:
        self._pending += self._take(len(self._buffer) - len(self._buffer.lstrip()))

    # ------------------------------------------------------------------ calls as JSON objects

    def _expect_object(self) -> bool:
        """{"name": ..., "arguments": ...} comes now, or no call."""
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        if self._buffer[0] != "{":
            return self._give_up()
        self._json = JsonScanner()
        self._state = self._in_object
        return True

    def _in_object(self) -> bool:
        """Wait for the name, or for the whole object if it is written in another way."""
        if match := _HEAD.match(self._buffer):
            try:
                name = json.loads(match[1])
            except ValueError:
                return self._give_up()
            self._take(match.end())
            self._start_call(name)
            return True
        end = self._json.end_in(self._buffer)
        if end is None:
            return self._ended and self._give_up()
        try:
            call = json.loads(self._buffer[:end])
            name, arguments = call["name"], call.get("arguments", call.get("parameters"))
        except (ValueError, KeyError):
            return self._give_up()
        if not isinstance(name, str):
            return self._give_up()
        self._take(end)
        self._add_call(name, arguments)
        self._state = self._after_call
        return True

    def _add_call(self, name: str, arguments: object) -> None:
        """A whole call; some models write the arguments as JSON in a string, or none at all."""
        if not isinstance(arguments, str):
            arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        self._delta.tool_calls += [
            ToolCallDelta(self._num_calls, name=name),
            ToolCallDelta(self._num_calls, arguments),
        ]
        self._end_call()

    def _start_call(self, name: str) -> None:
        """A call whose arguments follow, as an object."""
        self._delta.tool_calls.append(ToolCallDelta(self._num_calls, name=name))
        self._json = JsonScanner()
        self._state = self._in_arguments

    def _end_call(self) -> None:
        self._num_calls += 1
        self._pending = ""

    def _in_arguments(self) -> bool:
        """Pass the arguments on."""
        end = self._json.end_in(self._buffer)
        piece = self._take(len(self._buffer) if end is None else end)
        if piece:
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, piece))
        if end is None:
            self._json.forget()
            return False
        self._end_call()
        self._state = self._behind_arguments
        return True

    def _behind_arguments(self) -> bool:
        """The object's closing brace."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        if self._buffer[0] == "}":
            self._take(1)
        self._state = self._after_call
        return True


class JsonScanner:
    """Finds the end of an object or array in JSON text that comes in pieces."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """Where it ends; None if not in `text`, whose beginning has been looked at before."""
        while self._at < len(text):
            char = text[self._at]
            self._at += 1
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return self._at
        return None

    def forget(self) -> None:
        """The next text follows the one before, instead of beginning with it."""
        self._at = 0
