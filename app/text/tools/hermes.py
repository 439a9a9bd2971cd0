"""<tool_call>{"name": ..., "arguments": ...}</tool_call>, as of Hermes and Qwen."""

from app.text.tools.calls import CallScanner

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallScanner):
    """Each call between its own markers."""

    markers = (_OPEN,)

    def _after_marker(self) -> bool:
        return self._expect_object()

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer != _CLOSE and _CLOSE.startswith(self._buffer):
            return False  # and where the text ends inside the marker, that is no content
        if self._buffer.startswith(_CLOSE):
            self._take(len(_CLOSE))
        self._state = self._in_content
        return True
