"""Calls as a name and a JSON object between markers, as in Mistral's [TOOL_CALLS]name[ARGS]{...}."""

import re
from collections.abc import Mapping

from .arguments import Schema
from .calls import CallScanner

_LONGEST_HEAD = 400


class NamedParser(CallScanner):
    """Parses such calls, and behind the same markers also calls that are JSON objects."""

    def __init__(
        self,
        schemas: Mapping[str, Schema] | None = None,
        *,
        opening: tuple[str, ...],
        head: re.Pattern[str],
        closing: tuple[str, ...] = (),
    ) -> None:
        """`head`: what stands between an opening marker and the arguments; its group is the name."""
        super().__init__(schemas)
        self.markers = opening
        self._head = head
        self._closing = closing

    def _after_marker(self) -> bool:
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        for marker in self.markers:  # one may stand behind another
            if self._buffer.startswith(marker):
                self._pending += self._take(len(marker))
                return True
            if not self._ended and marker.startswith(self._buffer):
                return False
        self._state = self._expect_calls if self._buffer[0] in "[{" else self._at_name
        return True

    def _at_name(self) -> bool:
        if match := self._head.match(self._buffer):
            self._take(match.end())
            self._start_call(match[1], self._behind_call)
            return True
        head = self._buffer[:_LONGEST_HEAD]
        if self._ended or "{" in head or len(self._buffer) >= _LONGEST_HEAD:
            return self._give_up()
        return False

    def _behind_call(self) -> bool:
        """Skip closing markers."""
        rest = self._buffer.lstrip()
        for marker in self._closing:
            if rest.startswith(marker):
                self._buffer = rest[len(marker) :]
                return True
            if marker.startswith(rest):
                return False  # if the text ends inside the marker, that part is no content
        self._state = self._in_content
        return True
