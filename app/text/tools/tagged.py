"""The format of Qwen3-Coder and Qwen3.5: <function=NAME> with a <parameter=KEY> for each argument, in <tool_call>."""

import json
import re

from ..message_parser import ToolCallDelta, length_before
from .arguments import Schema, as_json, property_of, types_of
from .hermes import HermesParser

FUNCTION, END_OF_FUNCTION = "<function=", "</function>"
PARAMETER, END_OF_PARAMETER = "<parameter=", "</parameter>"
_NAME = re.compile(r"([^\s<>]{1,256})>")
_NAME_BEGUN = re.compile(r"[^\s<>]{0,256}\Z")
_KEY = re.compile(r"([^<>\n]{1,256})>")
_KEY_BEGUN = re.compile(r"[^<>\n]{0,256}\Z")
_BETWEEN = (PARAMETER, END_OF_FUNCTION, "</tool_call>")
_ENDS_OF_VALUE = ("\n" + END_OF_PARAMETER, END_OF_PARAMETER)


class TaggedParser(HermesParser):
    """Parses calls in tags, and also those of Hermes, because models mix them up.

    Models leave out <tool_call> at times. Arguments that are strings are passed on as they arrive, others as a whole.
    """

    markers = ("<tool_call>", FUNCTION)

    def _after_marker(self) -> bool:
        if not self._pending.endswith(FUNCTION):
            self._skip_space()
            if not self._ended and FUNCTION.startswith(self._buffer):
                return False
            if not self._buffer.startswith(FUNCTION):
                return super()._after_marker()
            self._pending += self._take(len(FUNCTION))
        self._state = self._at_name
        return True

    def _at_name(self) -> bool:
        if match := _NAME.match(self._buffer):
            self._take(match.end())
            self._schema: Schema = self._schemas.get(match[1], {})
            self._before = "{"
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, name=match[1]))
            self._state = self._in_function
            return True
        return False if not self._ended and _NAME_BEGUN.match(self._buffer) else self._give_up()

    def _in_function(self) -> bool:
        """Between the parameters. A call that is cut here has no closing brace."""
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith(PARAMETER):
            if match := _KEY.match(self._buffer, len(PARAMETER)):
                self._take(match.end())
                self._begin_argument(match[1])
                return True
            if _KEY_BEGUN.match(self._buffer, len(PARAMETER)):
                return False
        elif any(tag.startswith(self._buffer) and tag != self._buffer for tag in _BETWEEN):
            return False
        if self._buffer.startswith(END_OF_FUNCTION):
            self._take(len(END_OF_FUNCTION))
        self._add_arguments("{}" if self._before == "{" else "}")
        self._end_call()
        self._state = self._after_call
        return True

    def _begin_argument(self, key: str) -> None:
        self._types = types_of(property_of(self._schema, key), self._schema)
        self._add_arguments(f"{self._before}{json.dumps(key, ensure_ascii=False)}: ")
        self._before = ", "
        self._state = self._at_value

    def _at_value(self) -> bool:
        """A line break stands in front of the value, and another one behind it."""
        if not self._buffer:
            return False
        self._take(self._buffer.startswith("\n"))
        if self._types - {"string"}:
            self._num_searched = 0
            self._state = self._in_value
        else:
            self._add_arguments('"')
            self._state = self._in_string
        return True

    def _in_string(self) -> bool:
        end = self._buffer.find(END_OF_PARAMETER)
        if end < 0:
            self._add_arguments(_escaped(self._take(length_before(self._buffer, _ENDS_OF_VALUE))))
            return False
        self._add_arguments(_escaped(self._take(end).removesuffix("\n")) + '"')
        self._take(len(END_OF_PARAMETER))
        self._state = self._in_function
        return True

    def _in_value(self) -> bool:
        """Wait for the whole value. Of one that is cut, there is what was written."""
        end = self._buffer.find(END_OF_PARAMETER, self._num_searched)
        if end < 0:
            self._num_searched = max(0, len(self._buffer) - len(END_OF_PARAMETER))
            if self._ended:
                self._add_arguments(self._take(length_before(self._buffer, _ENDS_OF_VALUE)).strip())
            return False
        self._add_arguments(as_json(self._take(end).removesuffix("\n"), self._types))
        self._take(len(END_OF_PARAMETER))
        self._state = self._in_function
        return True

    def _add_arguments(self, piece: str) -> None:
        if piece:
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, piece))


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
