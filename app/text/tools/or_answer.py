"""Tells calls that are plain JSON from an answer that is JSON, too."""

import re
from collections.abc import Sequence

from ..message_parser import MessageDelta, MessageParser, PlainText

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]')
"""Of JSON."""


class CallsOrAnswer:
    """Takes a text for calls if it begins as one of them does, whatever its white space, and else for the answer."""

    def __init__(self, calls: MessageParser, beginnings: Sequence[str]) -> None:
        """`calls` parses the text if it begins with one of `beginnings`, which no answer begins with."""
        self._calls = calls
        self._beginnings = [_TOKEN.findall(beginning) for beginning in beginnings]
        self._held = ""
        self._chosen: MessageParser | None = None

    def feed(self, text: str) -> MessageDelta:
        """See `MessageParser`."""
        self._held += text
        if self._chosen is None:
            found = {_begins(self._held, beginning) for beginning in self._beginnings}
            if True not in found and None in found:
                return MessageDelta()
            self._chosen = self._calls if True in found else PlainText()
        text, self._held = self._held, ""
        return self._chosen.feed(text)

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        return MessageDelta(self._held) if self._chosen is None else self._chosen.finish()


def _begins(text: str, tokens: Sequence[str]) -> bool | None:
    """Whether a text begins with these tokens of JSON; None if it may do so once it goes on."""
    rest = text
    for token in tokens:
        rest = rest.lstrip()
        if not rest.startswith(token):
            return None if token.startswith(rest) else False
        rest = rest[len(token) :]
    return True
