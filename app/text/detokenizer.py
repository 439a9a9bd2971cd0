"""Token ids to text, as they come: never half a character."""

import codecs
from typing import Protocol

from app.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_HELD = 8
"""A character is at most four bytes, so at most four byte tokens; beyond this the bytes are simply invalid."""


class Detokenizer(Protocol):
    """The generated text of one request."""

    def feed(self, token_id: int) -> str:
        """The text that a token completes; empty if it ends inside a character, or is special."""
        ...

    def finish(self) -> str:
        """What was held back, with U+FFFD for half a character. Call it once, at the end."""
        ...


def make_detokenizer(tokenizer: Tokenizer, prompt_token_ids: list[int]) -> Detokenizer:
    """The right one for a tokenizer. The prompt only gives context; its text is never returned."""
    if tokenizer.is_byte_level:
        return ByteDetokenizer(tokenizer)
    return WindowDetokenizer(tokenizer, prompt_token_ids)


class ByteDetokenizer:
    """For byte-level BPE: tokens are bytes, so text is their concatenation, decoded as UTF-8 as it grows."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._special = tokenizer.special_ids
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        return "" if token_id in self._special else self._decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._decode(b"", True)


class WindowDetokenizer:
    """For every other tokenizer: a token's text is what it adds to the decoding of the tokens before it.

    Decoding a short window is enough, since tokens affect only their neighbours (spaces between words). Text that
    ends in U+FFFD may be half a character and is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._window = [id_ for id_ in prompt_token_ids[-_MAX_HELD:] if id_ not in tokenizer.special_ids]
        self._num_done = len(self._window)

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        if token_id in self._tokenizer.special_ids:
            return ""
        self._window.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._window) - self._num_done < _MAX_HELD:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._advance(self._new_text())

    def _new_text(self) -> str:
        """What the window's new tokens add to its old ones."""
        before = self._tokenizer.decode(self._window[: self._num_done], skip_special_tokens=False)
        return self._tokenizer.decode(self._window, skip_special_tokens=False)[len(before) :]

    def _advance(self, text: str) -> str:
        self._window = self._window[self._num_done :] if len(self._window) > self._num_done else self._window
        self._num_done = len(self._window)
        return text
