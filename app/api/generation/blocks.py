"""The assistant's message as a list of blocks: Responses calls them output items, Anthropic content blocks.

One block is open at a time, and the next one closes it. Streams and whole answers are made from the same changes.
"""

import enum
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...core.request import FinishReason
from ...core.sampling import Logprobs
from ...text.message_parser import MessageDelta, MessageParser
from ...text.output_processor import TextDelta
from ..service import Service
from .answer import Answer


def new_call_id() -> str:
    """A new id of a tool call, by which the client names it in the result."""
    return f"call_{secrets.token_hex(12)}"


class Kind(enum.Enum):
    """What a block holds."""

    TEXT = enum.auto()
    REASONING = enum.auto()
    TOOL_CALL = enum.auto()


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a message."""

    kind: Kind
    index: int
    """Its index in the message."""
    call_id: str = ""
    name: str = ""
    """The name of the called function."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    """Of the text's tokens, if they were asked for."""
    is_over: bool = False

    @property
    def text(self) -> str:
        """The text, the reasoning, or the arguments of the call."""
        return "".join(self.pieces)


class Change(NamedTuple):
    """A block begins or ends (`text` is None), or gets more text."""

    block: Block
    text: str | None = None
    logprobs: Sequence[Logprobs] = ()


class Blocks:
    """Splits a message into blocks as it arrives."""

    def __init__(self, several_calls: bool = True) -> None:
        """Without `several_calls`, calls after the first are left out."""
        self._several_calls = several_calls
        self.all: list[Block] = []
        self._logprobs: list[Logprobs] = []
        """Of tokens whose text the parser still holds back."""

    @property
    def open(self) -> Block | None:
        """The block that is not complete yet."""
        return self.all[-1] if self.all and not self.all[-1].is_over else None

    def take(self, delta: MessageDelta, logprobs: Sequence[Logprobs] = ()) -> Iterator[Change]:
        """Add a piece of the message, and yield its changes: reasoning first, then text, then calls."""
        self._logprobs += logprobs
        if delta.reasoning:
            yield from self._extend(Kind.REASONING, delta.reasoning)
        if delta.content:
            yield from self._extend(Kind.TEXT, delta.content)
        for call in delta.tool_calls:
            if call.index > 0 and not self._several_calls:
                continue
            if call.name is not None:
                yield from self._begin(Kind.TOOL_CALL, new_call_id(), call.name)
            if call.arguments:
                yield from self._extend(Kind.TOOL_CALL, call.arguments)

    def finish(self) -> Iterator[Change]:
        """End the message. One without content is an empty text."""
        if not self.all:
            yield from self._begin(Kind.TEXT)
        if self.all[-1].kind is Kind.TEXT:  # logprobs of a stop token, which has no text
            self.all[-1].logprobs += self._logprobs
        yield from self._end()

    def _extend(self, kind: Kind, text: str) -> Iterator[Change]:
        if self.open is None or self.open.kind is not kind:
            yield from self._begin(kind)
        block = self.all[-1]
        block.pieces.append(text)
        logprobs, self._logprobs = self._logprobs, []
        if kind is Kind.TEXT:
            block.logprobs += logprobs
        yield Change(block, text, logprobs)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Change]:
        yield from self._end()
        self.all.append(Block(kind, len(self.all), call_id, name))
        yield Change(self.all[-1])

    def _end(self) -> Iterator[Change]:
        if self.open is not None:
            self.open.is_over = True
            yield Change(self.all[-1])


class BlocksAnswer(Answer):
    """An answer with one choice, as blocks. Subclasses write the changes."""

    def __init__(self, service: Service, streams: bool, parser: MessageParser, several_calls: bool) -> None:
        super().__init__(service, streams)
        self._parser = parser
        self._blocks = Blocks(several_calls)
        self._ending: TextDelta | None = None

    def take(self, index: int, delta: TextDelta) -> None:  # noqa: ARG002 - there is one choice
        """See `Answer`."""
        for _ in self._changes(delta):
            pass

    def events(self, index: int, delta: TextDelta) -> list[bytes]:  # noqa: ARG002 - there is one choice
        """See `Answer`."""
        return [data for change in self._changes(delta) for data in self.write(change)]

    def _changes(self, delta: TextDelta) -> Iterator[Change]:
        yield from self._blocks.take(self._parser.feed(delta.text), delta.logprobs)
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
