"""Calls as JSON between markers, as in Hermes' and Qwen's <tool_call>{"name": ..., "arguments": ...}</tool_call>."""

from collections.abc import Mapping

from .arguments import Schema
from .calls import CallScanner


class HermesParser(CallScanner):
    """Parses calls between markers: each between markers of its own, several of them, or a list."""

    def __init__(
        self,
        schemas: Mapping[str, Schema] | None = None,
        *,
        opening: tuple[str, ...] = ("<tool_call>",),
        closing: str = "</tool_call>",
    ) -> None:
        super().__init__(schemas)
        self.markers = opening
        self._closing = closing

    def _after_marker(self) -> bool:
        return self._expect_calls()

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer != self._closing and self._closing.startswith(self._buffer):
            return False  # if the text ends inside the marker, that part is no content
        if not self._buffer.startswith(self._closing):
            return super()._after_call()
        self._take(len(self._closing))
        self._state = self._in_content
        return True
