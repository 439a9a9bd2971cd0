"""A chat's answer: messages of the assistant, whole or as chunks."""

from typing import Literal

from msgspec import UNSET, UnsetType

from ...text.message_parser import MessageDelta, MessageParser, PlainText
from ...text.output_processor import TextDelta
from ..edge.answer import AnswerBody, encode_json
from ..edge.request_log import Usage
from ..generation.answer import ChoicesAnswer, Chunk, CompletionUsage, ended_by
from ..generation.blocks import new_call_id
from ..generation.logprobs import TokenLogprob, describe
from ..generation.timings import Timings
from ..service import Service
from .schema import ChatRequest

FinishedBy = Literal["stop", "length", "tool_calls"]


class CalledFunction(AnswerBody):
    """A function's name and its arguments, as JSON."""

    name: str
    arguments: str


class FunctionToolCall(AnswerBody, kw_only=True):
    """A call that the model wants made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(AnswerBody, kw_only=True):
    """What the model says. Reasoning and calls are left out if there are none."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FunctionToolCall] | UnsetType = UNSET


class ChatLogprobs(AnswerBody):
    """Token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(AnswerBody):
    """One of n messages."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy
    stop_reason: str | int | None
    """The stop string, or stop token, that ended it."""


class ChatCompletion(AnswerBody, kw_only=True):
    """Messages that answer a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    timings: Timings


class FunctionDelta(AnswerBody, kw_only=True):
    """The function's name, if the call begins here, and more of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(AnswerBody, kw_only=True):
    """A call begins, with an id and a type, or goes on."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatDelta(AnswerBody):
    """What is new of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(AnswerBody):
    """What is new of one of n messages."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishedBy | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    """The stop string, or stop token, that ended it; only in the last event of a choice."""


class ChatChunk(Chunk, kw_only=True):
    """What is new of the messages that answer a chat."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class MessageBuilder:
    """Builds the whole message from the parser's deltas."""

    def __init__(self, several_calls: bool) -> None:
        """Without `several_calls`, calls after the first are left out."""
        self._several_calls = several_calls
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self.tool_calls: list[FunctionToolCall] = []

    def add(self, delta: MessageDelta) -> list[ChatDelta]:
        """Add a delta. Returns it in OpenAI's form, split so that each has one kind of content."""
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        news = [ChatDelta(reasoning_content=delta.reasoning)] if delta.reasoning else []
        news += [ChatDelta(content=delta.content)] if delta.content else []
        calls = [call for call in delta.tool_calls if call.index == 0 or self._several_calls]
        return news + [ChatDelta(tool_calls=[self._add_call(call.index, call.name, call.arguments)]) for call in calls]

    def _add_call(self, index: int, name: str | None, arguments: str) -> ToolCallDelta:
        if name is None:
            self.tool_calls[index].function.arguments += arguments
            return ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments))
        call = FunctionToolCall(id=new_call_id(), function=CalledFunction(name, arguments))
        self.tool_calls.append(call)
        return ToolCallDelta(
            index=index, id=call.id, type=call.type, function=FunctionDelta(name=name, arguments=arguments)
        )

    def whole(self) -> AssistantMessage:
        """The message."""
        content = "".join(self._content)
        return AssistantMessage(
            content=content or None if self.tool_calls else content,
            reasoning_content="".join(self._reasoning) or UNSET,
            tool_calls=self.tool_calls or UNSET,
        )


class ChatAnswer(ChoicesAnswer):
    """Messages of the assistant."""

    def __init__(self, service: Service, body: ChatRequest, parsers: list[MessageParser], request_id: str) -> None:
        super().__init__(service, body, f"chatcmpl-{request_id}", ChatChunk, body.n)
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs
        self._parsers = parsers
        self._messages = [MessageBuilder(body.parallel_tool_calls) for _ in range(body.n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(body.n)]
        self._endings: dict[int, TextDelta] = {}
        self._frames: list[tuple[bytes, bytes]] = []
        """For each choice, the bytes of an event before and after its text."""

    def take(self, index: int, delta: TextDelta) -> None:
        """See `Answer`."""
        self._parse(index, delta)
        self._logprobs[index] += (describe(self._tokenizer, token) for token in delta.logprobs)
        self._endings[index] = delta

    def _parse(self, index: int, delta: TextDelta) -> list[ChatDelta]:
        """Parse a delta, and add it to the message."""
        parser, message = self._parsers[index], self._messages[index]
        news = message.add(parser.feed(delta.text))
        return news if delta.finish_reason is None else news + message.add(parser.finish())

    def _finished_by(self, index: int, ending: TextDelta) -> FinishedBy:
        reason = ended_by(ending)
        return "tool_calls" if reason == "stop" and self._messages[index].tool_calls else reason

    def body(self, usage: Usage) -> ChatCompletion:
        """See `Answer`."""
        choices = [
            ChatChoice(
                index,
                message.whole(),
                ChatLogprobs(self._logprobs[index]) if self._wants_logprobs else None,
                self._finished_by(index, self._endings[index]),
                self._endings[index].stop_reason,
            )
            for index, message in enumerate(self._messages)
        ]
        return ChatCompletion(**self._head, choices=choices, usage=CompletionUsage.of(usage), timings=Timings.of(usage))

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        indices = range(len(self._messages))
        self._frames = [self.split_event(ChatChunkChoice(index, ChatDelta(content=""))) for index in indices]
        return [self.choice_event(ChatChunkChoice(index, ChatDelta("assistant", ""))) for index in indices]

    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """See `Answer`."""
        result = []
        if type(self._parsers[index]) is PlainText and not (delta.logprobs or self._counts_always):
            if delta.text:  # nearly all events, so only the text is encoded here
                head, tail = self._frames[index]
                result.append(head + encode_json(delta.text) + tail)
        else:
            logprobs = [describe(self._tokenizer, token) for token in delta.logprobs]
            news = self._parse(index, delta) or ([ChatDelta(content="")] if logprobs else [])
            for at, one in enumerate(news):
                told = ChatLogprobs(logprobs) if logprobs and at == 0 else None
                result.append(self.choice_event(ChatChunkChoice(index, one, told)))
        if delta.finish_reason is not None:
            end = ChatChunkChoice(index, ChatDelta(), None, self._finished_by(index, delta), delta.stop_reason)
            result.append(self.ending_event(end))
        return result
