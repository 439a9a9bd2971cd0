"""Answers of /v1/completions and /v1/chat/completions"""

from typing import Literal

from pydantic import Field

from app.api.edge.answers import AnswerBody, TokenLogprob


class PromptTokensDetails(AnswerBody):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(AnswerBody):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Choice(AnswerBody):
    """How one of n ended."""

    index: int
    stop_reason: str | int | None
    """The stop string, or stop token, that ended it."""


class TextLogprobs(AnswerBody):
    """Token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    """A text."""

    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(AnswerBody):
    """Texts that continue the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class CalledFunction(AnswerBody):
    """A function's name and its arguments, as JSON."""

    name: str
    arguments: str


class FunctionToolCall(AnswerBody):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(AnswerBody):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field("", description="left out where there is none")
    tool_calls: list[FunctionToolCall] = Field([], description="left out where there are none")


class ChatLogprobs(AnswerBody):
    """Token by token."""

    content: list[TokenLogprob]
    refusal: None


class ChatChoice(Choice):
    """A message."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(AnswerBody):
    """Messages that answer a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
