"""Turns token ids into text as they arrive, never half a character."""

import codecs
from typing import Protocol

from .tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_HELD = 4
"""A character has at most four bytes, so at most four tokens. After that many it can no longer become complete."""
_MAX_LOOK_BACK = 32
"""Tokens at the end of a prompt among which one is searched that can serve as context."""


class Detokenizer(Protocol):
    """The generated text of one request."""

    def feed(self, token_id: int) -> str:
        """The text that a token completes; empty if the token ends inside a character, or is special."""
        ...

    def finish(self) -> str:
        """The text that was held back, with U+FFFD for half a character. To be called once, at the end."""
        ...


def make_detokenizer(
    tokenizer: Tokenizer, prompt_token_ids: list[int], shown: frozenset[int] = frozenset()
) -> Detokenizer:
    """The right detokenizer for a tokenizer. The prompt only gives context; its text is never returned.

    `shown`: special tokens whose text is returned nevertheless.
    """
    hidden = tokenizer.special_ids - shown
    if tokenizer.is_byte_level:
        return ByteDetokenizer(tokenizer, hidden)
    return WindowDetokenizer(tokenizer, prompt_token_ids, hidden)


class ByteDetokenizer:
    """For byte-level BPE. Tokens are bytes, so the text is their concatenation, decoded as UTF-8 while it grows."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._hidden = hidden
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        return "" if token_id in self._hidden else self._decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._decode(b"", True)


class WindowDetokenizer:
    """For every other tokenizer. The text of new tokens is what they add to the decoded text of the tokens before them.

    A short context is enough, because tokens affect only their neighbours (the space between two words). The context
    holds whole characters only: byte tokens are decoded together with the bytes before them, so half a character would
    spoil the next.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._context = self._last_whole(prompt_token_ids[-_MAX_LOOK_BACK:])
        self._held: list[int] = []
        """New tokens whose text was not returned yet, because it may be half a character."""

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        if token_id in self._hidden or not self._tokenizer.token_bytes(token_id):
            return ""
        self._held.append(token_id)
        given_up, text = "", self._text_of(self._held)
        if text.endswith(_REPLACEMENT):
            if len(self._held) < _MAX_HELD:
                return ""
            # The first token does not begin a character, but the tokens after it may.
            given_up = self._text_of([self._held.pop(0)])
            text = self._text_of(self._held)
            if text.endswith(_REPLACEMENT):
                return given_up
        self._context, self._held = self._held, []
        return given_up + text

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._text_of(self._held) if self._held else ""

    def _last_whole(self, token_ids: list[int]) -> list[int]:
        """The last token with a text of its own, else the tokens of the last character if it is complete."""
        for token_id in reversed(token_ids):
            is_text = token_id not in self._tokenizer.special_ids and self._tokenizer.token_bytes(token_id)
            if is_text and _REPLACEMENT not in self._decode([token_id]):
                return [token_id]
        for count in range(1, min(_MAX_HELD, len(token_ids)) + 1):
            text = self._decode(token_ids[-count:])
            if text and _REPLACEMENT not in text:
                return token_ids[-count:]
        return []

    def _text_of(self, token_ids: list[int]) -> str:
        """The text that tokens add to the context."""
        before = self._decode(self._context)
        text = self._decode(self._context + token_ids)
        # In some decoders an invalid byte makes its valid neighbours invalid too; then the context does not help.
        return text[len(before) :] if text.startswith(before) else self._decode(token_ids)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
