"""Answers of /v1/responses"""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.edge.answers import AnswerBody, TokenLogprob
from app.api.generation.fields import Effort

Nothing = Annotated[list[Any], Field(max_length=0)]
Status = Literal["completed", "incomplete"]


class OutputText(AnswerBody):
    """A text."""

    type: Literal["output_text"]
    text: str
    annotations: Nothing
    logprobs: list[TokenLogprob]


class ReasoningText(AnswerBody):
    """Reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputItem(AnswerBody):
    """A piece of the output."""

    id: str
    status: Status


class MessageItem(OutputItem):
    """What the model says."""

    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(OutputItem):
    """What the model thinks."""

    type: Literal["reasoning"]
    summary: Nothing
    content: list[ReasoningText]


class FunctionCallItem(OutputItem):
    """A call that the model wants made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class IncompleteDetails(AnswerBody):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(AnswerBody):
    """Of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(AnswerBody):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(AnswerBody):
    """How many tokens were read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ReasoningOptions(AnswerBody):
    """How much to think."""

    effort: Effort | None
    summary: None


class ResponseObject(AnswerBody):
    """A response, with what it repeats of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: None
    incomplete_details: IncompleteDetails | None
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    usage: ResponseUsage
    model: str
    instructions: str | None
    metadata: dict[str, str]
    previous_response_id: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    temperature: float
    top_p: float
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: ReasoningOptions
    truncation: Literal["disabled"]
    background: Literal[False]
    service_tier: Literal["default"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    store: bool


class DeletedResponse(AnswerBody):
    """A response that is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
