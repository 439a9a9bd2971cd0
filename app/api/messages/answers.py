"""Answers of /v1/messages and /v1/messages/count_tokens"""

from typing import Any, Literal

from app.api.edge.answers import AnswerBody


class MessageText(AnswerBody):
    """A text."""

    type: Literal["text"]
    text: str


class MessageThinking(AnswerBody):
    """Reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class MessageToolUse(AnswerBody):
    """A call that the model wants made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(AnswerBody):
    """How many tokens were read and written."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(AnswerBody):
    """What the model says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageText | MessageThinking | MessageToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(AnswerBody):
    """How long a prompt is."""

    input_tokens: int
