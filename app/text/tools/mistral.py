"""The formats of Mistral: [TOOL_CALLS][{"name": ..., "arguments": ...}, ...], or newer [TOOL_CALLS]name[ARGS]{...}."""

import re

from .calls import CallScanner

_MARKER, _ARGS = "[TOOL_CALLS]", "[ARGS]"
_NAME = re.compile(r"([\w.-]{1,99})(?:\[CALL_ID\][\w-]{0,99})?\s{0,9}(?:\[ARGS\])?\s{0,9}(?=\{)")
_LONGEST_HEAD = 256


class MistralParser(CallScanner):
    """Parses both forms."""

    markers = (_MARKER,)

    def _after_marker(self) -> bool:
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        self._state = self._expect_calls if self._buffer[0] in "[{" else self._at_name
        return True

    def _at_name(self) -> bool:
        if match := _NAME.match(self._buffer):
            self._take(match.end())
            self._start_call(match[1], self._in_content)
            return True
        head = self._buffer[:_LONGEST_HEAD]
        if self._ended or "{" in head or len(self._buffer) >= _LONGEST_HEAD:
            return self._give_up()
        return False
