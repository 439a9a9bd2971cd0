"""From a prompt or a chat to its texts, as the endpoints do it, without HTTP."""

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ..api.chat.answer import MessageBuilder
from ..api.chat.prepare import prepare_chat
from ..api.chat.schema import ChatRequest
from ..api.completions.prepare import prepare_completion
from ..api.completions.schema import CompletionRequest
from ..api.edge.body import validate
from ..api.edge.request_log import RequestLog
from ..api.generation.answer import ended_by
from ..api.generation.choices import Choice
from ..api.generation.run import Generation
from ..api.generation.timings import Timings
from ..api.service import Service
from ..errors import UnsupportedError
from ..text.message_parser import MessageParser, PlainText
from ..text.output_processor import TextDelta
from .results import LogprobsOfTokens, Output, Piece, Result, ToolCall


class Call:
    """One prompt, or one chat, with the texts that it gets."""

    def __init__(
        self, service: Service, prompt: Any, choices: list[Choice], texts: list["_Text"], priority: int
    ) -> None:
        """Submit it. Raises QueueFullError or EngineUnavailableError."""
        self._prompt = prompt
        self._token_ids = choices[0].prompt_token_ids
        self._entry = RequestLog(uuid.uuid4().hex, time.monotonic(), record=lambda _entry: None)
        timeout = service.settings.request_timeout
        self._entry.deadline = None if timeout is None else self._entry.arrived_at + timeout
        self._texts = texts
        self._generation = Generation(service, choices, len(choices), priority, self._entry)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all texts as they come. Closing the generator ends the work. Raises ApiError."""
        num_open = len(self._texts)
        async with aclosing(self._generation.deltas()) as deltas:
            async for index, delta in deltas:
                num_open -= delta.finish_reason is not None
                piece = self._texts[index].take(delta, None if num_open else self._timings)
                if piece.text or piece.reasoning or piece.token_ids or piece.output:
                    yield piece

    async def result(self) -> Result:
        """All of it. Raises ApiError."""
        async with aclosing(self._generation.deltas()) as deltas:
            async for index, delta in deltas:
                self._texts[index].take(delta, None)
        return Result(self._prompt, self._token_ids, [text.whole() for text in self._texts], self._timings)

    @property
    def _timings(self) -> Timings:
        return Timings.of(self._generation.usage)


_NOT_HERE = {
    "echo": "the prompt is in the result",
    "stream": "there are methods that stream",
    "stream_options": "there are methods that stream",
}
"""Fields of HTTP's requests that would change nothing here, and what there is instead."""


def _checked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, instead in _NOT_HERE.items():
        if name in fields:
            raise UnsupportedError(f"{name}: not without HTTP; {instead}", name)
    return fields


async def completion(service: Service, prompt: Any, fields: Mapping[str, Any]) -> Call:
    """A text, or token ids, to be continued. Raises ApiError that names the field."""
    body = validate(CompletionRequest, {**_checked(fields), "prompt": prompt})
    choices = await prepare_completion(service, body)
    texts = [_Text(index, PlainText()) for index in range(len(choices))]
    return Call(service, prompt, choices, texts, body.priority)


async def chat(service: Service, messages: Any, fields: Mapping[str, Any]) -> Call:
    """A chat to be answered. Raises ApiError that names the field."""
    body = validate(ChatRequest, {**_checked(fields), "messages": messages})
    prepared = await prepare_chat(service, body)
    several = body.parallel_tool_calls
    texts = [_Text(index, prepared.new_parser(), several) for index in range(len(prepared.choices))]
    return Call(service, messages, prepared.choices, texts, body.priority)


class _Text:
    """One text while it comes."""

    def __init__(self, index: int, parser: MessageParser, several_calls: bool = True) -> None:
        self._index = index
        self._parser = parser
        self._message = MessageBuilder(several_calls)
        self._token_ids: list[int] = []
        self._logprobs: LogprobsOfTokens = []
        self._ending: TextDelta | None = None

    def take(self, delta: TextDelta, timings: Timings | None) -> Piece:
        """Add what is new. `timings`: of the whole call, if it has ended."""
        parsed = [self._parser.feed(delta.text)]
        if delta.finish_reason is not None:
            parsed.append(self._parser.finish())
            self._ending = delta
        for one in parsed:
            self._message.add(one)
        logprobs = [dict(zip(one.token_ids, one.logprobs, strict=True)) for one in delta.logprobs]
        self._token_ids += delta.token_ids
        self._logprobs += logprobs
        return Piece(
            self._index,
            "".join(one.content for one in parsed),
            delta.token_ids,
            logprobs or None,
            "".join(one.reasoning for one in parsed),
            None if self._ending is None else self.whole(),
            timings if self._ending is not None else None,
        )

    def whole(self) -> Output:
        """The text, once it has ended."""
        assert self._ending is not None
        message, reason = self._message.whole(), ended_by(self._ending)
        calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in self._message.tool_calls]
        return Output(
            self._index,
            message.content or "",
            self._token_ids,
            "tool_calls" if calls and reason == "stop" else reason,
            self._ending.stop_reason,
            self._logprobs or None,
            message.reasoning_content or "",
            calls,
        )
