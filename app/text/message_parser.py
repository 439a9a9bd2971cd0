"""Parses the text that a model writes into the parts of an assistant's message.

The same parsers serve streams and whole answers, because the result does not depend on how the text is cut into pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of one tool call. The first piece of a call has its `name`, later pieces add to `arguments`."""

    index: int
    """Its place among the message's calls."""
    arguments: str = ""
    """A piece of JSON text."""
    name: str | None = None


@dataclass(slots=True)
class MessageDelta:
    """What a piece of text adds to a message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class MessageParser(Protocol):
    """Parses the text of one choice, piece by piece."""

    def feed(self, text: str) -> MessageDelta:
        """Parse the next piece of text. Text that may belong to a longer marker is held back."""
        ...

    def finish(self) -> MessageDelta:
        """Parse the text that was held back, because the text has ended."""
        ...


class PlainText:
    """Takes all text as content."""

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        return MessageDelta(text)

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        return MessageDelta()


class WithoutContent:
    """Drops the content that another parser finds, for texts that consist of calls: it is a call that was cut off."""

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        return replace(self._parser.feed(text), content="")

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        return replace(self._parser.finish(), content="")


class Scanner:
    """A parser with a buffer and states. Each state takes text from the beginning of the buffer, or waits for more."""

    def __init__(self) -> None:
        self._buffer = ""
        self._ended = False
        self._delta = MessageDelta()
        self._state: Callable[[], bool]
        """Takes a step; returns False if it needs more text."""

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        self._buffer += text
        return self._run()

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        self._ended = True
        return self._run()

    def _run(self) -> MessageDelta:
        while self._state():
            pass
        delta, self._delta = self._delta, MessageDelta()
        return delta

    def _take(self, count: int) -> str:
        """Take so many characters from the beginning of the buffer."""
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def length_before(text: str, words: tuple[str, ...]) -> int:
    """Length of `text` up to an end that may be the beginning of one of the words."""
    longest = max(map(len, words))
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(word.startswith(text[start:]) for word in words):
            return start
    return len(text)
