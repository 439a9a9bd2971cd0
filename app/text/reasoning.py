"""Reasoning: the text between two tags in front of an answer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .message_parser import MessageDelta, MessageParser, Scanner, length_before


class ReasoningTags(NamedTuple):
    """The texts around reasoning, which may be special tokens."""

    open: str
    close: str

    @property
    def markers(self) -> tuple[str, ...]:
        """What of these may be special tokens: the tags themselves, without words behind them."""
        return tuple(tag[: tag.find(">") + 1] or tag for tag in self)

    def end_open(self, text: str) -> bool:
        """Whether a text ends inside of reasoning."""
        return text.rfind(self.open) > text.rfind(self.close)


THINK = ReasoningTags("<think>", "</think>")
TAGS = {
    "think": THINK,
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    "seed_oss": ReasoningTags("<seed:think>", "</seed:think>"),
    "command": ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma4": ReasoningTags("<|channel>thought\n", "<channel|>"),
}


class ReasoningTokens:
    """Counts the tokens of a text's reasoning, and finds its end."""

    def __init__(self, tags: ReasoningTags, is_open: bool, token_bytes: Callable[[int], bytes]) -> None:
        """`is_open`: the prompt ends inside of reasoning. `token_bytes`: the text of a token."""
        self._open, self._close = (tag.encode() for tag in tags)
        self._token_bytes = token_bytes
        self._text = b""
        """What may be a part of a tag."""
        self._num_undecided = 0
        """Tokens of what may become the opening tag."""
        self.is_open = is_open
        """Whether the text is inside of its reasoning now."""
        self.is_over = False
        """Whether the reasoning has ended, or there is none."""

    def count(self, token_ids: Sequence[int]) -> int:
        """How many tokens are known to be reasoning with these, the next ones. Those of the tags are among them."""
        found = 0
        for token_id in token_ids:
            if self.is_over:
                break
            self._num_undecided += 1
            self._text += self._token_bytes(token_id)
            if not self.is_open:
                self._look_for_the_beginning()
            if self.is_open:
                found += self._num_undecided
                self._num_undecided = 0
                self.is_over = self._close in self._text
                self.is_open = not self.is_over
                self._text = self._text[1 - len(self._close) :]
        return found

    def _look_for_the_beginning(self) -> None:
        begun = self._text.lstrip()
        if begun.startswith(self._open):
            self.is_open, self._text = True, begun[len(self._open) :]
        else:
            self.is_over = not self._open.startswith(begun)


class ReasoningParser(Scanner):
    """Takes everything up to the closing tag as reasoning, if the text begins with the opening one."""

    def __init__(self, answer: MessageParser, is_open: bool, tags: ReasoningTags = THINK) -> None:
        """`answer` parses the text behind the reasoning. `is_open`: the prompt ends inside of reasoning."""
        super().__init__()
        self._answer = answer
        self._tags = tags
        self._state = self._in_reasoning if is_open else self._at_beginning

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        delta, rest = super().finish(), self._answer.finish()
        return MessageDelta(delta.content + rest.content, delta.reasoning, delta.tool_calls + rest.tool_calls)

    def _at_beginning(self) -> bool:
        begun = self._buffer.lstrip()
        if begun.startswith(self._tags.open):
            self._buffer = begun[len(self._tags.open) :]
            self._state = self._in_reasoning
            return True
        if not self._ended and self._tags.open.startswith(begun):
            return False
        self._state = self._in_answer
        return True

    def _in_reasoning(self) -> bool:
        at = self._buffer.find(self._tags.close)
        if at >= 0:
            self._delta.reasoning += self._take(at).rstrip("\n")
            self._take(len(self._tags.close))
            self._state = self._after_reasoning
            return True
        # Line breaks at the end of the reasoning are dropped.
        known = (
            len(self._buffer)
            if self._ended
            else len(self._buffer[: length_before(self._buffer, (self._tags.close,))].rstrip("\n"))
        )
        self._delta.reasoning += self._take(known)
        return False

    def _after_reasoning(self) -> bool:
        self._buffer = self._buffer.lstrip("\n")
        if not self._buffer:
            return False
        self._state = self._in_answer
        return True

    def _in_answer(self) -> bool:
        delta = self._answer.feed(self._take(len(self._buffer)))
        self._delta.content += delta.content
        self._delta.tool_calls += delta.tool_calls
        return False
