"""The format of Hermes and Qwen: <tool_call>{"name": ..., "arguments": ...}</tool_call>."""

from .calls import CallScanner

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallScanner):
    """Parses calls between markers, mostly each between markers of its own."""

    markers: tuple[str, ...] = (_OPEN,)

    def _after_marker(self) -> bool:
        return self._expect_calls()

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer != _CLOSE and _CLOSE.startswith(self._buffer):
            return False  # if the text ends inside the marker, that part is no content
        if not self._buffer.startswith(_CLOSE):
            return super()._after_call()
        self._take(len(_CLOSE))
        self._state = self._in_content
        return True
