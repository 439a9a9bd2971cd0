"""Reasoning: the text between <think> and </think> in front of an answer."""

from app.text.message_parser import MessageDelta, MessageParser, Scanner, length_before

OPEN, CLOSE = "<think>", "</think>"


class ReasoningParser(Scanner):
    """Takes everything up to </think> as reasoning, if the text begins with <think> or the prompt ends with it."""

    def __init__(self, answer: MessageParser, is_open: bool) -> None:
        """`answer` parses the text behind the reasoning. `is_open`: the prompt ends with <think>."""
        super().__init__()
        self._answer = answer
        self._state = self._in_reasoning if is_open else self._at_beginning

    def finish(self) -> MessageDelta:
        """See `MessageParser`."""
        delta, rest = super().finish(), self._answer.finish()
        return MessageDelta(delta.content + rest.content, delta.reasoning, delta.tool_calls + rest.tool_calls)

    def _at_beginning(self) -> bool:
        begun = self._buffer.lstrip()
        if begun.startswith(OPEN):
            self._buffer = begun[len(OPEN) :]
            self._state = self._in_reasoning
            return True
        if not self._ended and OPEN.startswith(begun):
            return False
        self._state = self._in_answer
        return True

    def _in_reasoning(self) -> bool:
        at = self._buffer.find(CLOSE)
        if at >= 0:
            self._delta.reasoning += self._take(at).rstrip("\n")
            self._take(len(CLOSE))
            self._state = self._after_reasoning
            return True
        # Line breaks at the end of the reasoning are dropped.
        known = (
            len(self._buffer)
            if self._ended
            else len(self._buffer[: length_before(self._buffer, (CLOSE,))].rstrip("\n"))
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
