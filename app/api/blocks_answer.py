"""Answers that are one message, as a row of blocks."""

from abc import abstractmethod
from collections.abc import Iterator

from app.api.answer import Answer
from app.api.blocks import Block, Blocks, Change, Kind
from app.api.schemas.chat import ChatRequest
from app.api.service import Service
from app.core.request import FinishReason
from app.text.message_parser import MessageParser
from app.text.output_processor import TextDelta


class BlocksAnswer(Answer):
    """The message of the one choice of a call. Subclasses say how its changes look on the wire."""

    def __init__(self, service: Service, chat: ChatRequest, parser: MessageParser) -> None:
        super().__init__(service, chat.stream)
        self._parser = parser
        self._blocks = Blocks(chat.parallel_tool_calls)
        self._ending: TextDelta | None = None
        self._num_reasoning_tokens = 0
        """Tokens that came while the model was reasoning."""

    def take(self, index: int, delta: TextDelta) -> None:  # noqa: ARG002 - there is one choice
        """See `Answer`."""
        for _ in self._changes(delta):
            pass

    def events(self, index: int, delta: TextDelta) -> list[bytes]:  # noqa: ARG002 - there is one choice
        """See `Answer`."""
        return [data for change in self._changes(delta) for data in self.write(change)]

    def _changes(self, delta: TextDelta) -> Iterator[Change]:
        yield from self._blocks.take(self._parser.feed(delta.text), delta.logprobs)
        if self._blocks.open is not None and self._blocks.open.kind is Kind.REASONING:
            self._num_reasoning_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            yield from self._blocks.take(self._parser.finish())
            self._ending = delta
            yield from self._blocks.finish()

    @abstractmethod
    def write(self, change: Change) -> list[bytes]:
        """The events for a change."""

    # ------------------------------------------------------------------ how it ended

    @property
    def _is_cut(self) -> bool:
        """Whether the message ended by its length."""
        return self._ending is not None and self._ending.finish_reason is FinishReason.LENGTH

    def _is_incomplete(self, block: Block) -> bool:
        """Whether a block is what was being written when the tokens were used up."""
        return self._is_cut and block is self._blocks.all[-1]
