"""A message as Anthropic's API writes it, whole and as events."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType, structs

from ...errors import ApiError
from ..chat.parts import arguments_so_far
from ..chat.prepare import Chat
from ..chat.schema import ChatRequest
from ..edge.answer import AnswerBody, NamedEvent
from ..edge.errors import anthropic_error_body
from ..edge.request_log import Usage
from ..edge.sse import named_event
from ..generation.blocks import Block, BlocksAnswer, Change, Kind
from ..service import Service
from .schema import MessagesRequest

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class ContentBlock(AnswerBody):
    """A piece of what the model says."""

    type: str


class MessageText(ContentBlock, kw_only=True):
    """A text."""

    type: Literal["text"] = "text"
    text: str


class MessageThinking(ContentBlock, kw_only=True):
    """Reasoning."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class MessageToolUse(ContentBlock, kw_only=True):
    """A call that the model wants made."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class MessageTokensDetails(AnswerBody):
    """Of the output's tokens."""

    thinking_tokens: int


class MessageUsage(AnswerBody):
    """How many tokens were read and written. Cached tokens are counted apart from the other input tokens."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> "MessageUsage":
        """In the form of Anthropic's API."""
        return cls(
            usage.prompt_tokens - usage.cached_tokens,
            0,
            usage.cached_tokens,
            usage.completion_tokens,
            MessageTokensDetails(usage.reasoning_tokens),
        )


class AppliedEdits(AnswerBody):
    """Which edits of the context were applied: none."""

    applied_edits: tuple[()] = ()


class AnthropicMessage(AnswerBody, kw_only=True):
    """What the model says."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    context_management: AppliedEdits | UnsetType = UNSET
    """If the request has it."""


class EventDelta(AnswerBody):
    """The change of a message or a block."""


class BlockDelta(EventDelta):
    """More of a block's text, thinking, or input, which is JSON."""

    type: Literal["text_delta", "thinking_delta", "input_json_delta"]
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET


class Ending(EventDelta):
    """Why a message has ended."""

    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageEvent(NamedEvent):
    """An event of a streamed message. `index` names a block of its content."""

    type: Literal[
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message: AnthropicMessage | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: ContentBlock | UnsetType = UNSET
    delta: EventDelta | UnsetType = UNSET
    usage: MessageUsage | UnsetType = UNSET
    context_management: AppliedEdits | UnsetType = UNSET


class TokenCount(AnswerBody):
    """How long a prompt is."""

    input_tokens: int


class MessageAnswer(BlocksAnswer):
    """One message of the assistant."""

    def __init__(self, service: Service, body: MessagesRequest, chat: ChatRequest, run: Chat, request_id: str) -> None:
        """`chat`: the translation of `body`. `run`: the prepared `chat`."""
        super().__init__(service, chat.stream, run.new_parser(), chat.parallel_tool_calls)
        self.response_id = f"msg_{request_id}"
        self._request_id = request_id
        self._max_tokens = body.max_tokens
        edits = UNSET if body.context_management is None else AppliedEdits()
        self._message = AnthropicMessage(
            id=self.response_id,
            model=service.name_of(body.model),
            content=[],
            usage=MessageUsage.of(Usage()),
            context_management=edits,
        )

    def body(self, usage: Usage) -> AnthropicMessage:
        """See `Answer`."""
        content = [_content_block(block) for block in self._blocks.all]
        ending = structs.asdict(self._end_of(usage))
        return structs.replace(self._message, content=content, **ending, usage=MessageUsage.of(usage))

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        message = structs.replace(self._message, usage=MessageUsage.of(self._used))
        return [named_event(MessageEvent("message_start", message=message)), named_event(MessageEvent("ping"))]

    def write(self, change: Change) -> list[bytes]:
        """See `BlocksAnswer`."""
        block = change.block
        if change.text is not None:
            event = MessageEvent("content_block_delta", index=block.index, delta=_delta(block.kind, change.text))
        elif block.is_over:
            event = MessageEvent("content_block_stop", index=block.index)
        else:
            event = MessageEvent("content_block_start", index=block.index, content_block=_content_block(block))
        return [named_event(event)]

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        ending, edits = self._end_of(usage), self._message.context_management
        delta = MessageEvent("message_delta", delta=ending, usage=MessageUsage.of(usage), context_management=edits)
        return [named_event(delta), named_event(MessageEvent("message_stop"))]

    def end(self, error: ApiError | None) -> bytes:
        """See `Answer`."""
        return b"" if error is None else named_event(anthropic_error_body(error, self._request_id))

    def _end_of(self, usage: Usage) -> Ending:
        reason = self._ending.stop_reason if self._ending else None
        if isinstance(reason, str):
            return Ending("stop_sequence", reason)
        if self._is_cut:
            is_full = usage.completion_tokens < self._max_tokens
            return Ending("model_context_window_exceeded" if is_full else "max_tokens")
        calls = any(block.kind is Kind.TOOL_CALL for block in self._blocks.all)
        return Ending("tool_use" if calls else "end_turn")


def _content_block(block: Block) -> ContentBlock:
    if block.kind is Kind.TEXT:
        return MessageText(text=block.text)
    if block.kind is Kind.REASONING:
        return MessageThinking(thinking=block.text)
    return MessageToolUse(id=block.call_id, name=block.name, input=arguments_so_far(block.text) or {})


def _delta(kind: Kind, text: str) -> BlockDelta:
    if kind is Kind.TEXT:
        return BlockDelta("text_delta", text=text)
    if kind is Kind.REASONING:
        return BlockDelta("thinking_delta", thinking=text)
    return BlockDelta("input_json_delta", partial_json=text)
