"""From the text that a model writes to the parts of an assistant's message.

The same parser serves streams and whole answers: what comes out does not depend on how the text is cut into pieces.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class ToolCallDelta:
    """News of one tool call. The first of a call has `id` and `name`, later ones add to `arguments`."""

    index: int
    """Its place among the message's calls."""
    arguments: str = ""
    """A piece of JSON text."""
    id: str | None = None
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


def make_message_parser() -> MessageParser:
    """A parser for one choice."""
    return PlainText()
