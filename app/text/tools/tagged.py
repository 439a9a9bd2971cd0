"""Calls with a tag for each argument, as Qwen3-Coder, GLM-4.5, MiniMax and DeepSeek V3.2 write them.

See `app.text.tools.tags`.
"""

import json
from collections.abc import Mapping
from functools import partial

from ..message_parser import ToolCallDelta, length_before
from .arguments import Schema, as_json, property_of, types_of
from .hermes import HermesParser
from .tags import Head, Tags

_STRING = frozenset({"string"})
_NO_STRING = frozenset({"array", "boolean", "integer", "null", "number", "object"})


class TaggedParser(HermesParser):
    """Parses calls in tags, and also those of Hermes, because models mix them up.

    Models leave out the first tag at times. Arguments that are strings are passed on as they arrive, others as a whole.
    """

    def __init__(self, schemas: Mapping[str, Schema] | None = None, *, tags: Tags) -> None:
        before = tags.function.before
        super().__init__(schemas, opening=(tags.opening, *([before] if before else [])), closing=tags.closing)
        self._tags = tags
        self._line = "\n" if tags.may_break_lines else ""
        self._ends_of_value = self._line + tags.end_of_parameter, tags.end_of_parameter

    def _after_marker(self) -> bool:
        before = self._tags.function.before
        if not before or not self._pending.endswith(before):
            self._skip_space()
            if not self._buffer:
                return self._ended and self._give_up()
            if before and not self._ended and before.startswith(self._buffer):
                return False
            if self._buffer[0] in "{[" or not self._buffer.startswith(before):
                return super()._after_marker()
            self._pending += self._take(len(before))
        self._state = self._at_name
        return True

    def _at_name(self) -> bool:
        try:
            found = self._tags.function.read(self._buffer)
        except ValueError:
            return self._give_up()
        if found is None:
            return self._ended and self._give_up()
        name, length = found
        self._take(length)
        self._schema: Schema = self._schemas.get(name, {})
        self._before = "{"
        self._delta.tool_calls.append(ToolCallDelta(self._num_calls, name=name))
        self._state = self._in_function
        return True

    def _in_function(self) -> bool:
        """Between the parameters. A call that is cut here has no closing brace."""
        self._buffer = self._buffer.lstrip()
        tags = self._tags
        if self._buffer.startswith(tags.parameter.before):
            try:
                found = tags.parameter.read(self._buffer[len(tags.parameter.before) :])
            except ValueError:
                return self._end_function()
            if found is None:
                return False
            self._take(len(tags.parameter.before) + found[1])
            self._begin_argument(found[0])
            if tags.is_string is not None:
                self._state = partial(self._at_type, tags.is_string)
            return True
        between = (tags.parameter.before, tags.end_of_function, tags.closing)
        if any(tag.startswith(self._buffer) and tag != self._buffer for tag in between):
            return False
        return self._end_function()

    def _end_function(self) -> bool:
        if self._buffer.startswith(self._tags.end_of_function):
            self._take(len(self._tags.end_of_function))
        self._add_arguments("{}" if self._before == "{" else "}")
        self._end_call()
        self._state = self._after_call
        return True

    def _begin_argument(self, key: str) -> None:
        self._types = types_of(property_of(self._schema, key), self._schema)
        self._add_arguments(f"{self._before}{json.dumps(key, ensure_ascii=False)}: ")
        self._before = ", "
        self._state = self._at_value

    def _at_type(self, head: Head) -> bool:
        """The tag says whether the argument is a string. What the schema says counts more."""
        try:
            found = head.read(self._buffer)
        except ValueError:
            return self._end_function()
        if found is None:
            return False
        self._take(found[1])
        own = _STRING if found[0] == "true" else _NO_STRING
        self._types = (self._types & own or self._types) if self._types else own
        self._state = self._at_value
        return True

    def _at_value(self) -> bool:
        """A line break may stand in front of the value, and another one behind it."""
        if not self._buffer:
            return False
        self._take(bool(self._line) and self._buffer.startswith(self._line))
        if self._types - {"string"}:
            self._num_searched = 0
            self._state = self._in_value
        else:
            self._add_arguments('"')
            self._state = self._in_string
        return True

    def _in_string(self) -> bool:
        end = self._buffer.find(self._tags.end_of_parameter)
        if end < 0:
            self._add_arguments(_escaped(self._take(length_before(self._buffer, self._ends_of_value))))
            return False
        self._add_arguments(_escaped(self._take(end).removesuffix(self._line)) + '"')
        self._take(len(self._tags.end_of_parameter))
        self._state = self._in_function
        return True

    def _in_value(self) -> bool:
        """Wait for the whole value. Of one that is cut, there is what was written."""
        end = self._buffer.find(self._tags.end_of_parameter, self._num_searched)
        if end < 0:
            self._num_searched = max(0, len(self._buffer) - len(self._tags.end_of_parameter))
            if self._ended:
                self._add_arguments(self._take(length_before(self._buffer, self._ends_of_value)).strip())
            return False
        self._add_arguments(as_json(self._take(end).removesuffix(self._line), self._types))
        self._take(len(self._tags.end_of_parameter))
        self._state = self._in_function
        return True

    def _add_arguments(self, piece: str) -> None:
        if piece:
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, piece))


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
