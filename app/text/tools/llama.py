"""The format of Llama 3: a message that begins with {"name": ..., "parameters": ...}, or several with semicolons."""

from app.text.tools.calls import CallScanner

_MARKER = "<|python_tag|>"


class LlamaParser(CallScanner):
    """Parses calls at the beginning of the message, or behind the marker."""

    markers = (_MARKER,)

    def __init__(self) -> None:
        super().__init__()
        self._state = self._at_beginning

    def _at_beginning(self) -> bool:
        self._skip_space()
        if not self._buffer:
            return self._ended and self._give_up()
        if self._buffer[0] == "{":
            return self._expect_object()
        return self._give_up()

    def _after_marker(self) -> bool:
        return self._expect_object()

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        if self._buffer[0] == ";":
            self._pending = self._take(1)
            self._state = self._expect_object
        else:
            self._state = self._in_content
        return True
