"""The format of Llama 3: a message that begins with {"name": ..., "parameters": ...}, or several of them."""

from collections.abc import Mapping

from .arguments import Schema
from .calls import CallScanner

_MARKER = "<|python_tag|>"


class LlamaParser(CallScanner):
    """Parses calls at the beginning of the message, or behind the marker."""

    markers = (_MARKER,)

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        super().__init__(schemas)
        self._state = self._expect_calls

    def _after_marker(self) -> bool:
        return self._expect_calls()
