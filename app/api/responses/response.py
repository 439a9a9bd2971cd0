"""A response as OpenAI's API writes it, and the events of its stream."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from ..edge.answer import AnswerBody, NamedEvent
from ..edge.request_log import Usage
from ..generation.fields import Effort
from ..generation.logprobs import TokenLogprob
from ..generation.timings import Timings
from .items import Status

Nothing = tuple[()]
ResponseStatus = Status | Literal["queued", "failed", "cancelled"]
ErrorCode = Literal["rate_limit_exceeded", "server_error"]


class OutputPart(AnswerBody):
    """The only part of an item's content: a text, or reasoning, which has no annotations and no logprobs."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: Nothing | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class OutputItem(AnswerBody):
    """A piece of the output."""

    id: str
    status: Status
    type: str


class OutputMessage(OutputItem, kw_only=True):
    """What the model says."""

    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    content: list[OutputPart]


class OutputReasoning(OutputItem, kw_only=True):
    """What the model thinks."""

    type: Literal["reasoning"] = "reasoning"
    summary: Nothing = ()
    content: list[OutputPart]
    encrypted_content: str | UnsetType = UNSET


class OutputFunctionCall(OutputItem, kw_only=True):
    """A call of a function that the model wants made."""

    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


class OutputCustomCall(OutputItem, kw_only=True):
    """A call that the model wants made of a tool that takes a text."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    input: str


class ResponseError(AnswerBody):
    """Why a response has failed."""

    code: ErrorCode
    message: str


class IncompleteDetails(AnswerBody):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(AnswerBody):
    """Details of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(AnswerBody):
    """Details of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(AnswerBody):
    """How many tokens were read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        """In the form of this API."""
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(usage.reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        )


class ReasoningOptions(AnswerBody):
    """How much the model reasons."""

    effort: Effort | None
    summary: str | None


class ResponseObject(AnswerBody, kw_only=True):
    """A response, with what it repeats of its request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    model: str
    instructions: str | None
    metadata: dict[str, str]
    previous_response_id: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: ReasoningOptions
    truncation: Literal["auto", "disabled"]
    background: bool
    service_tier: Literal["default"] = "default"
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    store: bool
    timings: Timings | UnsetType = UNSET
    """Once it has ended by itself."""


class DeletedResponse(AnswerBody):
    """A response that was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(AnswerBody, kw_only=True):
    """A page of the items that a response answers."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(AnswerBody, kw_only=True):
    """How long a prompt is."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class ResponseEvent(NamedEvent, kw_only=True):
    """An event of a streamed response: about the response, an item, or the content of an item."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "error",
    ]
    response: ResponseObject | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputPart | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    input: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    code: ErrorCode | UnsetType = UNSET
    message: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET
    sequence_number: int
