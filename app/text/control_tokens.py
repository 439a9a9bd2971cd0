"""Keeps control tokens that users type apart from those that a chat template writes."""

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]
Segments = list[tuple[str, bool]]
"""Pieces of a rendered chat: (text, whether it may contain control tokens)."""

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
"""Private-use characters around digits, because no filter of a template changes or escapes them."""


class ControlTokens:
    """The texts that are control tokens where a chat template writes them."""

    def __init__(self, special: Iterable[str], others: Iterable[str] = ()) -> None:
        """`special` are control tokens wherever they stand, `others` not in what the model itself has written."""
        self.texts = _longest_first([*special, *others])
        self.index_of = {text: index for index, text in enumerate(self.texts)}
        self.longest = len(self.texts[0]) if self.texts else 0
        self.pattern, self.special_pattern = _any_of(self.texts), _any_of(_longest_first(special))
        begun = {text[:length] for text in self.texts for length in range(1, len(text))}
        # Roles, types and names of fields stay as they are, because templates compare them.
        self._begun = {text for text in begun if not text.isidentifier()}

    def may_begin_in(self, text: str) -> bool:
        """Whether a text ends with the beginning of a control token."""
        return any(text[-length:] in self._begun for length in range(1, min(len(text), self.longest - 1) + 1))

    def guard(self) -> "Guard":
        """A guard for one chat."""
        return Guard(self)


def _longest_first(texts: Iterable[str]) -> list[str]:
    """Longer tokens first, so that a token is not mistaken for a shorter one inside it."""
    return sorted(filter(None, texts), key=len, reverse=True)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


class Guard:
    """Puts placeholders for control tokens into one chat, and finds them again in the rendered text."""

    def __init__(self, tokens: ControlTokens) -> None:
        self._tokens = tokens
        nonce = secrets.randbits(64)
        self.mark = f"{_OPEN}{nonce}{_CLOSE} "
        """A text that stands nowhere else, with a blank at its end."""
        self._placeholder = f"{_OPEN}{nonce}:{{}}{_CLOSE}"
        self._placeholders = re.compile(f"{_OPEN}{nonce}:([0-9]*){_CLOSE}")

    def hide_in(self, chat: Sequence[Message]) -> list[Message]:
        """The messages of a chat with placeholders. The model's own may have the tags of its reasoning and calls."""
        return [
            self.hide(message, self._tokens.special_pattern if message["role"] == "assistant" else None)
            for message in chat
        ]

    def hide(self, value: Any, pattern: re.Pattern[str] | None = None) -> Any:
        """A copy of JSON data with a placeholder for each control token, or what a pattern finds, in its texts.

        A text that ends with the beginning of a control token gets an empty placeholder behind it, because a template
        may write another text there that completes the token.
        """
        tokens = self._tokens
        pattern = pattern or tokens.pattern
        if isinstance(value, str):
            text = pattern.sub(lambda match: self._placeholder.format(tokens.index_of[match[0]]), value)
            return text + self._placeholder.format("") if tokens.may_begin_in(value) else text
        if isinstance(value, dict):
            return {self.hide(name, pattern): self.hide(item, pattern) for name, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item, pattern) for item in value]
        return value

    def split(self, text: str) -> Segments:
        """Cut a rendered chat at the placeholders, and put the text of the tokens back."""
        segments: Segments = []
        for index, piece in enumerate(self._placeholders.split(text)):
            if index % 2:
                if piece:
                    segments.append((self._tokens.texts[int(piece)], False))
            elif piece and index and segments and segments[-1][1] and not self._completes(segments[-1][0], piece):
                segments[-1] = (segments[-1][0] + piece, True)  # nothing was hidden between the two
            elif piece:
                segments.append((piece, True))
        return segments

    def _completes(self, before: str, after: str) -> bool:
        """Whether two texts side by side form a control token."""
        tail = before[-self._tokens.longest :]
        both = tail + after[: self._tokens.longest]
        matches = (self._tokens.pattern.match(both, start) for start in range(len(tail)))
        return any(match is not None and match.end() > len(tail) for match in matches)
