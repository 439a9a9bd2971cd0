"""OpenAI's harmony format, in which gpt-oss writes: messages with headers, each in a channel.

A text is `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`: the prompt ends with
`<|start|>assistant`. What is in the channel `analysis` is reasoning. A message to a function is a call, whose header
says `to=functions.NAME`, before or behind the channel, which is `commentary` then. All else is content. Source:
https://cookbook.openai.com/articles/openai-harmony.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from .message_parser import Scanner, ToolCallDelta, length_before
from .reasoning import ReasoningTags

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CALL, RETURN, CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
MARKERS = (START, CHANNEL, MESSAGE, END, CALL, RETURN, CONSTRAIN)
ANSWER = f"{CHANNEL}final{MESSAGE}"
"""What an answer begins with."""
BETWEEN = f"{END}{START}assistant"
"""What stands between two messages."""
TO_FUNCTION, BEFORE_ARGUMENTS = f"{CHANNEL}commentary to=functions.", f" {CONSTRAIN}json{MESSAGE}"
"""What stands around the name of a function that is called."""
ANALYSIS = ReasoningTags(f"{CHANNEL}analysis{MESSAGE}", BETWEEN)

_BEGINNINGS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, " to=")
"""What a header begins with. The end of a message may stand in front of it."""
_ENDS = (END, CALL, RETURN, START, CHANNEL)
"""What ends a message; the last two, because models leave the end out at times, begin another one."""
_LONGEST_HEADER = 500
"""Characters."""
_CUT_HEADER = re.compile(
    rf"({re.escape(END)}|{re.escape(START)}\w*)*( to=[^\s<]*)?({re.escape(CHANNEL)}\s*\w*)?( to=[^\s<]*)?"
    rf"( ?{re.escape(CONSTRAIN)})?( ?\w*)"
)
"""A header, or the beginning of one, at the end of a text."""
_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


class HarmonyParser(Scanner):
    """Parses all of an assistant's text: reasoning, calls and content. Text without a header is content."""

    def __init__(self, schemas: Mapping[str, Any] | None = None, in_reasoning: bool = False) -> None:
        """`schemas`: of functions, by their names; there are no calls if it is empty. `in_reasoning`: the prompt ends
        inside of the analysis.
        """
        super().__init__()
        self._takes_calls = schemas is None or bool(schemas)
        self._num_calls = 0
        self._add: Callable[[str], None] = self._add_reasoning if in_reasoning else self._add_content
        self._said: set[str] = set()
        """What there has been of reasoning and content: a line break is between two messages of a kind."""
        self._state = self._in_body if in_reasoning else self._at_beginning

    def _at_beginning(self) -> bool:
        """Where a message may begin."""
        if not self._buffer:
            return False
        if self._buffer.startswith(_BEGINNINGS):
            self._state = self._in_header
            return True
        if not self._ended and any(beginning.startswith(self._buffer) for beginning in _BEGINNINGS):
            return False
        return self._begin("content")

    def _in_header(self) -> bool:
        at = self._buffer.find(MESSAGE, 0, _LONGEST_HEADER)
        if at < 0:
            is_short = len(self._buffer) < _LONGEST_HEADER
            if not self._ended and is_short:
                return False
            if is_short and _CUT_HEADER.fullmatch(self._buffer):  # the text ended at its limit of tokens
                self._take(len(self._buffer))
                return False
            marker = next(beginning for beginning in _BEGINNINGS if self._buffer.startswith(beginning))
            self._begin("content")
            self._add(self._take(len(marker)))  # it is no header
            return True
        header = self._take(at)
        self._take(len(MESSAGE))
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient and self._takes_calls:
            self._add = self._add_arguments
            name = recipient[1].removeprefix("functions.")
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, name=name))
            self._has_arguments = False
            self._state = self._in_body
            return True
        return self._begin("reasoning" if channel and channel[1] == "analysis" else "content")

    def _begin(self, kind: str) -> bool:
        """Begin a message that is no call."""
        self._add = self._add_reasoning if kind == "reasoning" else self._add_content
        if kind in self._said:
            self._add("\n")
        self._said.add(kind)
        self._state = self._in_body
        return True

    def _in_body(self) -> bool:
        found = [at for end in _ENDS if (at := self._buffer.find(end)) >= 0]
        if not found:
            known = len(self._buffer) if self._ended else length_before(self._buffer, _ENDS)
            self._add(self._take(known))
            return False
        self._add(self._take(min(found)))
        end = next(end for end in _ENDS if self._buffer.startswith(end))
        if end not in (START, CHANNEL):
            self._take(len(end))
        if self._add == self._add_arguments:
            if not self._has_arguments:
                self._add("{}")
            self._num_calls += 1
        self._state = self._at_beginning
        return True

    def _add_content(self, text: str) -> None:
        self._delta.content += text

    def _add_reasoning(self, text: str) -> None:
        self._delta.reasoning += text

    def _add_arguments(self, text: str) -> None:
        if text:
            self._has_arguments = True
            self._delta.tool_calls.append(ToolCallDelta(self._num_calls, text))
