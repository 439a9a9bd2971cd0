"""An engine of the terminal's own. What it imports, a chat with a server does not need."""

import sys
from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import Any, Self

from ..llm.llm import LLM
from .sources import Delta, Messages


class OwnEngine:
    """An engine that lives as long as the chat."""

    def __init__(self, **settings: Any) -> None:
        """Load the model, and say so, since it takes a while. Raises StartupError."""
        print("loading the model ...", file=sys.stderr)
        self._llm = LLM(**settings, progress=False)
        self.name = self._llm.model_name

    def answer(self, messages: Messages, fields: dict[str, Any]) -> Generator[Delta, None, None]:
        """See `Source`."""
        with closing(self._llm.stream_chat(messages, fields)) as pieces:
            for piece in pieces:
                yield Delta(piece.text, piece.reasoning, len(piece.token_ids))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._llm.close()
