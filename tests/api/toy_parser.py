"""A parser of messages that is easy to write for: control characters say what follows."""

from app.text.message_parser import MessageDelta, ToolCallDelta

REASONING, TEXT, CALL, ARGUMENTS = "\x01", "\x02", "\x03", "\x04"


def written(*parts: tuple[str, ...]) -> str:
    """The text of a message: ("reasoning", text), ("text", text) and ("call", name, arguments)."""
    texts = []
    for kind, *rest in parts:
        if kind == "call":
            texts.append(CALL + rest[0] + ARGUMENTS + rest[1])
        else:
            texts.append((REASONING if kind == "reasoning" else TEXT) + rest[0])
    return "".join(texts)


class ToyParser:
    """Ids of calls are call_0, call_1, ..."""

    def __init__(self) -> None:
        self._mode = TEXT
        self._name = ""
        self._num_calls = 0

    def feed(self, text: str) -> MessageDelta:
        """See MessageParser; takes one character at a time, as the fake engine gives them."""
        delta = MessageDelta()
        for character in text:
            self._take(character, delta)
        return delta

    def _take(self, character: str, delta: MessageDelta) -> None:
        if character in (REASONING, TEXT, CALL):
            self._mode, self._name = character, ""
        elif character == ARGUMENTS:
            self._mode = ARGUMENTS
            delta.tool_calls.append(ToolCallDelta(self._num_calls, "", f"call_{self._num_calls}", self._name))
            self._num_calls += 1
        elif self._mode == REASONING:
            delta.reasoning += character
        elif self._mode == TEXT:
            delta.content += character
        elif self._mode == CALL:
            self._name += character
        else:
            delta.tool_calls.append(ToolCallDelta(self._num_calls - 1, character))

    def finish(self) -> MessageDelta:
        """See MessageParser."""
        return MessageDelta()
