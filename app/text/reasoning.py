"""Reasoning: the text between two tags in front of an answer."""

from typing import NamedTuple

from .message_parser import MessageDelta, MessageParser, Scanner, length_before


class ReasoningTags(NamedTuple):
    """The texts around reasoning, which may be special tokens."""

    open: str
    close: str

    def end_open(self, text: str) -> bool:
        """Whether a text ends inside of reasoning."""
        return text.rfind(self.open) > text.rfind(self.close)


THINK = ReasoningTags("<think>", "</think>")
TAGS = {"think": THINK, "mistral": ReasoningTags("[THINK]", "[/THINK]")}


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
