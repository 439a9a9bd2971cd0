"""A response as OpenAI's API writes it, whole and as events."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import UNSET, UnsetType, structs

from app.api.chat.parts import Fields, assistant_message, tool_call
from app.api.chat.prepare import Chat
from app.api.chat.schema import ChatRequest
from app.api.edge.answer import AnswerBody, NamedEvent
from app.api.edge.request_log import Usage
from app.api.edge.sse import named_event
from app.api.generation.blocks import Block, BlocksAnswer, Change, Kind
from app.api.generation.choices import Choice
from app.api.generation.fields import Effort
from app.api.generation.logprobs import TokenLogprob, describe
from app.api.responses.schema import ResponsesRequest, Status
from app.api.service import Service
from app.core.sampling import Logprobs
from app.errors import ApiError

Nothing = tuple[()]
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


class OutputFunctionCall(OutputItem, kw_only=True):
    """A call that the model wants made."""

    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str


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


class ReasoningOptions(AnswerBody):
    """How much the model reasons."""

    effort: Effort | None
    summary: None = None


class ResponseObject(AnswerBody, kw_only=True):
    """A response, with what it repeats of its request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status | Literal["failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    model: str
    instructions: str | None
    metadata: dict[str, str]
    previous_response_id: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    temperature: float
    top_p: float
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: ReasoningOptions
    truncation: Literal["disabled"] = "disabled"
    background: bool = False
    service_tier: Literal["default"] = "default"
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    store: bool


class DeletedResponse(AnswerBody):
    """A response that was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


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
    name: str | UnsetType = UNSET
    code: ErrorCode | UnsetType = UNSET
    message: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET
    sequence_number: int


_PREFIXES = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.TOOL_CALL: "fc"}
_EVENTS = {Kind.TEXT: "output_text", Kind.REASONING: "reasoning_text", Kind.TOOL_CALL: "function_call_arguments"}
"""The names of the events about a block's text."""


class ResponseAnswer(BlocksAnswer):
    """One response."""

    def __init__(
        self,
        service: Service,
        body: ResponsesRequest,
        chat: ChatRequest,
        run: Chat,
        messages: list[Fields],
        keep: Callable[[str, ResponseObject, list[Fields]], None] | None,
    ) -> None:
        """`chat`: the translation of `body`. `run`: the prepared `chat`.

        `messages`: the conversation so far. `keep` stores it with the response's id and body, if it is to be stored.
        """
        super().__init__(service, chat.stream, run.new_parser(), chat.parallel_tool_calls)
        self._tokenizer = service.tokenizer
        self._messages = messages
        self._keep = keep
        # Not the request's id, which clients may choose: whoever knows the id of a stored response can read it.
        self._unique = uuid.uuid4().hex
        self._empty = _empty(f"resp_{self._unique}", service.model_name, body, run.choices[0], keep is not None)
        self._num_events = 0

    # ------------------------------------------------------------------ a body

    def body(self, usage: Usage) -> ResponseObject:
        """See `Answer`."""
        if self._is_cut:
            response = self._response("incomplete", incomplete_details=IncompleteDetails())
        else:
            response = self._response("completed", completed_at=int(time.time()))
        response.usage = self._usage(usage)
        if self._keep is not None:
            self._keep(response.id, response, [*self._messages, self._message()])
        return response

    def _response(self, status: str, **fields: Any) -> ResponseObject:
        output = [self._item(block) for block in self._blocks.all]
        return structs.replace(self._empty, status=status, output=output, **fields)

    def _usage(self, usage: Usage) -> ResponseUsage:
        return ResponseUsage(
            usage.prompt_tokens,
            InputTokensDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(self._num_reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        )

    def _message(self) -> Fields:
        """The message of the assistant, for later responses. A call that was cut off is left out."""
        blocks = {kind: [block for block in self._blocks.all if block.kind is kind] for kind in Kind}
        calls = [block for block in blocks[Kind.TOOL_CALL] if not self._is_incomplete(block)]
        return assistant_message(
            [block.text for block in blocks[Kind.TEXT]],
            "".join(block.text for block in blocks[Kind.REASONING]),
            [tool_call(block.call_id, block.name, block.text) for block in calls],
        )

    def _item(self, block: Block) -> OutputItem:
        """A block as an output item, in its present state."""
        id_ = self._item_id(block)
        status: Status = "completed" if block.is_over else "in_progress"
        if block.is_over and self._is_incomplete(block):
            status = "incomplete"
        if block.kind is Kind.TOOL_CALL:
            return OutputFunctionCall(id_, status, call_id=block.call_id, name=block.name, arguments=block.text)
        content = [self._part(block)] if block.is_over else []
        kind = OutputReasoning if block.kind is Kind.REASONING else OutputMessage
        return kind(id_, status, content=content)

    def _part(self, block: Block) -> OutputPart:
        if block.kind is Kind.REASONING:
            return OutputPart("reasoning_text", block.text)
        return OutputPart("output_text", block.text, (), self._logprobs(block.logprobs))

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._unique}_{block.index}"

    def _logprobs(self, tokens: Sequence[Logprobs]) -> list[TokenLogprob]:
        return [describe(self._tokenizer, token) for token in tokens]

    # ------------------------------------------------------------------ a stream

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        return [
            self._event("response.created", response=self._empty),
            self._event("response.in_progress", response=self._empty),
        ]

    def write(self, change: Change) -> list[bytes]:
        """See `BlocksAnswer`."""
        block = change.block
        if change.text is not None:
            return [self._text_event("delta", block, change.logprobs, delta=change.text)]
        if not block.is_over:
            item = self._item_event("added", block)
            return [item] if block.kind is Kind.TOOL_CALL else [item, self._part_event("added", block)]
        if block.kind is Kind.TOOL_CALL:
            events = [self._text_event("done", block, arguments=block.text, name=block.name)]
        else:
            events = [self._text_event("done", block, block.logprobs, text=block.text), self._part_event("done", block)]
        return [*events, self._item_event("done", block)]

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        response = self.body(usage)
        return [self._event(f"response.{response.status}", response=response)]

    def end(self, error: ApiError | None) -> bytes:
        """See `Answer`."""
        if error is None:
            return b""
        told = ResponseError("rate_limit_exceeded" if error.status == 429 else "server_error", error.message)
        event = self._event("error", code=told.code, message=told.message, param=error.param)
        return event + self._event("response.failed", response=self._response("failed", error=told))

    def _item_event(self, what: str, block: Block) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=block.index, item=self._item(block))

    def _part_event(self, what: str, block: Block) -> bytes:
        return self._event(f"response.content_part.{what}", **self._place(block), part=self._part(block))

    def _text_event(self, what: str, block: Block, logprobs: Sequence[Logprobs] = (), **fields: Any) -> bytes:
        if block.kind is Kind.TEXT:
            fields["logprobs"] = self._logprobs(logprobs)
        return self._event(f"response.{_EVENTS[block.kind]}.{what}", **self._place(block), **fields)

    def _place(self, block: Block) -> Fields:
        content = {} if block.kind is Kind.TOOL_CALL else {"content_index": 0}
        return {"item_id": self._item_id(block), "output_index": block.index, **content}

    def _event(self, kind: Any, /, **fields: Any) -> bytes:
        data = ResponseEvent(type=kind, **fields, sequence_number=self._num_events)
        self._num_events += 1
        return named_event(data)


def _empty(id_: str, model: str, body: ResponsesRequest, choice: Choice, is_stored: bool) -> ResponseObject:
    """A response without output, which repeats fields of the request."""
    asked = body.model_dump(by_alias=True, exclude_none=True, include={"tools", "tool_choice", "text"})
    return ResponseObject(
        id=id_,
        created_at=int(time.time()),
        output=[],
        model=model,
        instructions=body.instructions,
        metadata=body.metadata,
        previous_response_id=body.previous_response_id,
        max_output_tokens=body.max_output_tokens,
        temperature=choice.sampling.temperature,
        top_p=choice.sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        tools=[{"parameters": None, "strict": None, **tool} for tool in asked["tools"]],
        tool_choice=asked.get("tool_choice", "auto"),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text=asked["text"],
        reasoning=ReasoningOptions(body.reasoning.effort if body.reasoning else None),
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        store=is_stored,
    )
