"""From the text that a model writes to the parts of an assistant's message.

The same parser serves streams and whole answers: what comes out does not depend on how the text is cut into pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(slots=True)
class ToolCallDelta:
    """News of one tool call. The first of a call has its `name`, later ones add to `arguments`."""

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
        """Take in the next piece of text; what cannot be told yet is held back."""
        ...

    def finish(self) -> MessageDelta:
        """The text has ended: what was held back."""
        ...


class PlainText:
    """All text is content."""

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        return MessageDelta(text)

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        return MessageDelta()


class WithoutContent:
    """What another parser takes for content is nothing: a call that was cut at its length."""

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        return replace(self._parser.feed(text), content="")

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        return replace(self._parser.finish(), content="")


class Scanner:
    """A parser that reads from a buffer, in states: each takes something off its beginning, or waits for more."""

    def __init__(self) -> None:
        self._buffer = ""
        self._ended = False
        self._delta = MessageDelta()
        self._state: Callable[[], bool]
        """Whether it got on: False is for want of more text."""

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
        """Take that many characters off the buffer."""
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def length_before(text: str, words: tuple[str, ...]) -> int:
    """Characters of `text` before what could be the beginning of one of some words at its end."""
    longest = max(map(len, words))
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(word.startswith(text[start:]) for word in words):
            return start
    return len(text)
