"""A chat's answer: messages of the assistant, whole or as chunks."""

from typing import Any

from app.api.chat.schema import ChatRequest
from app.api.edge.sse import encode_json
from app.api.generation.answer import ChoicesAnswer
from app.api.generation.blocks import new_call_id
from app.api.generation.logprobs import describe
from app.api.service import Service
from app.core.request import FinishReason
from app.text.message_parser import MessageDelta, MessageParser, PlainText
from app.text.output_processor import TextDelta

_EVENT_TAIL = b'},"logprobs":null,"finish_reason":null}]}\n\n'


class MessageBuilder:
    """Takes in deltas, and gives the whole message in OpenAI's form."""

    def __init__(self, several_calls: bool) -> None:
        """Without `several_calls`, calls after the first are left out."""
        self._several_calls = several_calls
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[dict[str, Any]] = []

    def add(self, delta: MessageDelta) -> list[dict[str, Any]]:
        """Take in news; returns those of tool calls as OpenAI streams them."""
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        calls = [call for call in delta.tool_calls if call.index == 0 or self._several_calls]
        return [self._add_call(call.index, call.name, call.arguments) for call in calls]

    def _add_call(self, index: int, name: str | None, arguments: str) -> dict[str, Any]:
        if name is None:
            self.tool_calls[index]["function"]["arguments"] += arguments
            return {"index": index, "function": {"arguments": arguments}}
        call = {"id": new_call_id(), "type": "function"}
        self.tool_calls.append({**call, "function": {"name": name, "arguments": arguments}})
        return {"index": index, **call, "function": {"name": name, "arguments": arguments}}

    def whole(self) -> dict[str, Any]:
        """The message."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self.reasoning):
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message |= {"content": content or None, "tool_calls": self.tool_calls}
        return message


class ChatAnswer(ChoicesAnswer):
    """Messages of the assistant."""

    def __init__(self, service: Service, body: ChatRequest, parsers: list[MessageParser], request_id: str) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(service, body, {"id": f"chatcmpl-{request_id}", "object": kind})
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs
        self._parsers = parsers
        self._messages = [MessageBuilder(body.parallel_tool_calls) for _ in range(body.n)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(body.n)]
        self._endings: list[TextDelta | None] = [None] * body.n
        self._event_heads: list[bytes] = []

    def take(self, index: int, delta: TextDelta) -> None:
        """See `Answer`."""
        self._parse(index, delta)
        self._logprobs[index] += (describe(self._tokenizer, token) for token in delta.logprobs)
        self._endings[index] = delta

    def _parse(self, index: int, delta: TextDelta) -> list[dict[str, Any]]:
        """Add what a delta says to the message; returns it as deltas of OpenAI's, of one kind each."""
        parser, message = self._parsers[index], self._messages[index]
        parts = [parser.feed(delta.text)]
        if delta.finish_reason is not None:
            parts.append(parser.finish())
        news: list[dict[str, Any]] = []
        for part in parts:
            calls = message.add(part)
            news += [{"reasoning_content": part.reasoning}] if part.reasoning else []
            news += [{"content": part.content}] if part.content else []
            news += [{"tool_calls": [call]} for call in calls]
        return news

    def _finish_reason(self, index: int, ending: TextDelta) -> str | None:
        has_calls = bool(self._messages[index].tool_calls)
        return "tool_calls" if has_calls and ending.finish_reason is FinishReason.STOP else ending.finish_reason

    def choices(self) -> list[dict[str, Any]]:
        """See `Answer`."""
        return [
            {
                "index": index,
                "message": self._messages[index].whole(),
                "logprobs": {"content": self._logprobs[index], "refusal": None} if self._wants_logprobs else None,
                "finish_reason": self._finish_reason(index, ending) if ending else None,
                "stop_reason": ending.stop_reason if ending else None,
            }
            for index, ending in enumerate(self._endings)
        ]

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        indices = range(len(self._endings))
        self._event_heads = [self.event_head({"index": index, "delta": {"content": ""}}) for index in indices]
        return [self._event(index, {"role": "assistant", "content": ""}) for index in indices]

    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """See `Answer`."""
        result = []
        if type(self._parsers[index]) is PlainText and not (delta.logprobs or self._counts_always):
            if delta.text:  # nearly all events: but for the text, they are made beforehand
                result.append(self._event_heads[index] + encode_json(delta.text) + _EVENT_TAIL)
        else:
            news = self._parse(index, delta)
            logprobs = {"content": [describe(self._tokenizer, token) for token in delta.logprobs], "refusal": None}
            if delta.logprobs and not news:
                news = [{"content": ""}]
            for at, one in enumerate(news):
                result.append(self._event(index, one, logprobs if delta.logprobs and at == 0 else None))
        if delta.finish_reason is not None:
            result.append(self._event(index, {}, ending=delta))
        return result

    def _event(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, ending: TextDelta | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if ending:
            choice |= {"finish_reason": self._finish_reason(index, ending), "stop_reason": ending.stop_reason}
        return self.choice_event(choice)
