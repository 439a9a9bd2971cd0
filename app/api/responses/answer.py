"""How a response is answered: from the blocks of a message to output items, whole and as events."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, structs

from ...core.sampling import Logprobs
from ...errors import ApiError
from ..chat.parts import Fields
from ..chat.prepare import Chat
from ..chat.schema import ChatRequest
from ..edge.request_log import Usage
from ..edge.sse import named_event
from ..generation.blocks import Block, BlocksAnswer, Change, Kind
from ..generation.choices import Choice
from ..generation.logprobs import TokenLogprob, describe
from ..generation.timings import Timings
from ..service import Service
from .items import Status, wrap_reasoning
from .response import (
    IncompleteDetails,
    OutputCustomCall,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputPart,
    OutputReasoning,
    ReasoningOptions,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
)
from .schema import ENCRYPTED, ReasoningConfig, ResponsesRequest
from .toolset import ToolSet, text_of


class _Form(NamedTuple):
    """How a block is called as an output item."""

    prefix: str
    """Of its id."""
    event: str
    """Of the events about its text."""


_TEXT = _Form("msg", "output_text")
_REASONING = _Form("rs", "reasoning_text")
_FUNCTION_CALL = _Form("fc", "function_call_arguments")
_CUSTOM_CALL = _Form("ctc", "custom_tool_call_input")


class ResponseAnswer(BlocksAnswer):
    """One response."""

    def __init__(
        self,
        service: Service,
        body: ResponsesRequest,
        chat: ChatRequest,
        run: Chat,
        tools: ToolSet,
        unique: str,
        keep: Callable[[str, ResponseObject], None] | None,
    ) -> None:
        """`chat`: the translation of `body`. `run`: the prepared `chat`. `tools`: those of the request.

        `unique`: what the ids have in common. `keep` stores the response by its id at its end, if it is to be stored.
        """
        super().__init__(service, chat.stream, run.new_parser(), chat.parallel_tool_calls)
        self._tokenizer = service.tokenizer
        self._tools = tools
        self._unique = unique
        self._encrypts = ENCRYPTED in body.include
        self._keep = keep
        self._empty = _empty(f"resp_{unique}", service.name_of(body.model), body, run.choices[0], keep is not None)
        self._num_events = 0

    # ------------------------------------------------------------------ a body

    @property
    def so_far(self) -> ResponseObject:
        """The response in its present state, while it is generated."""
        return self._response("in_progress" if self._blocks.all else "queued")

    def cancel(self) -> ResponseObject:
        """The response, which ends here because its client wants it to."""
        return self._ended(self._response("cancelled"))

    def body(self, usage: Usage) -> ResponseObject:
        """See `Answer`."""
        if self._is_cut:
            response = self._response("incomplete", incomplete_details=IncompleteDetails())
        else:
            response = self._response("completed", completed_at=int(time.time()))
        response.usage, response.timings = ResponseUsage.of(usage), Timings.of(usage)
        return self._ended(response)

    def _response(self, status: str, **fields: Any) -> ResponseObject:
        cut: Status = "incomplete" if status in ("cancelled", "failed") else "in_progress"
        output = [self._item(block, cut) for block in self._blocks.all]
        return structs.replace(self._empty, status=status, output=output, **fields)

    def _ended(self, response: ResponseObject) -> ResponseObject:
        if self._keep is not None:
            self._keep(response.id, response)
        return response

    def _form(self, block: Block) -> _Form:
        if block.kind is Kind.TOOL_CALL:
            return _CUSTOM_CALL if self._tools.given(block.name).takes_text else _FUNCTION_CALL
        return _TEXT if block.kind is Kind.TEXT else _REASONING

    def _item_id(self, block: Block) -> str:
        return f"{self._form(block).prefix}_{self._unique}_{block.index}"

    def _item(self, block: Block, while_open: Status = "in_progress") -> OutputItem:
        """A block as an output item, in its present state."""
        status: Status = "completed" if block.is_over else while_open
        if block.is_over and self._is_incomplete(block):
            status = "incomplete"
        id_, content = self._item_id(block), [self._part(block)] if block.is_over or block.pieces else []
        if block.kind is Kind.TEXT:
            return OutputMessage(id_, status, content=content)
        if block.kind is Kind.REASONING:
            encrypted = wrap_reasoning(block.text) if self._encrypts else UNSET
            return OutputReasoning(id_, status, content=content, encrypted_content=encrypted)
        given = self._tools.given(block.name)
        called: Fields = {"call_id": block.call_id, "name": given.name, "namespace": given.namespace or UNSET}
        if given.takes_text:
            return OutputCustomCall(id_, status, **called, input=text_of(block.text) if block.is_over else "")
        return OutputFunctionCall(id_, status, **called, arguments=block.text)

    def _part(self, block: Block) -> OutputPart:
        if block.kind is Kind.REASONING:
            return OutputPart("reasoning_text", block.text)
        return OutputPart("output_text", block.text, (), self._logprobs(block.logprobs))

    def _logprobs(self, tokens: Sequence[Logprobs]) -> list[TokenLogprob]:
        return [describe(self._tokenizer, token) for token in tokens]

    # ------------------------------------------------------------------ a stream

    def opening_events(self) -> list[bytes]:
        """See `Answer`."""
        return [
            self._event("response.created", response=self._empty),
            self._event("response.in_progress", response=self._empty),
        ]

    def write(self, change: Change) -> list[bytes]:
        """See `BlocksAnswer`."""
        block, form = change.block, self._form(change.block)
        if change.text is not None:
            if form is _CUSTOM_CALL:  # its text is inside of JSON, and is sent when that is complete
                return []
            return [self._text_event("delta", block, change.logprobs, delta=change.text)]
        if not block.is_over:
            item = self._item_event("added", block)
            return [item] if block.kind is Kind.TOOL_CALL else [item, self._part_event("added", block)]
        return [*self._end_of_text(block, form), self._item_event("done", block)]

    def _end_of_text(self, block: Block, form: _Form) -> list[bytes]:
        if form is _FUNCTION_CALL:
            name = self._tools.given(block.name).name
            return [self._text_event("done", block, arguments=block.text, name=name)]
        if form is _CUSTOM_CALL:
            text = text_of(block.text)
            return [self._text_event("delta", block, delta=text), self._text_event("done", block, input=text)]
        return [self._text_event("done", block, block.logprobs, text=block.text), self._part_event("done", block)]

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
        response = self._ended(self._response("failed", error=told))
        return event + self._event("response.failed", response=response)

    def _item_event(self, what: str, block: Block) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=block.index, item=self._item(block))

    def _part_event(self, what: str, block: Block) -> bytes:
        return self._event(f"response.content_part.{what}", **self._place(block), part=self._part(block))

    def _text_event(self, what: str, block: Block, logprobs: Sequence[Logprobs] = (), **fields: Any) -> bytes:
        if block.kind is Kind.TEXT:
            fields["logprobs"] = self._logprobs(logprobs)
        return self._event(f"response.{self._form(block).event}.{what}", **self._place(block), **fields)

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
    reasoning = body.reasoning or ReasoningConfig()
    return ResponseObject(
        id=id_,
        created_at=int(time.time()),
        output=[],
        model=model,
        instructions=body.instructions,
        metadata=body.metadata,
        previous_response_id=body.previous_response_id,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        temperature=choice.sampling.temperature,
        top_p=choice.sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        tools=[
            ({"parameters": None, "strict": None} if tool["type"] == "function" else {}) | tool
            for tool in asked["tools"]
        ],
        tool_choice=asked.get("tool_choice", "auto"),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text=asked["text"],
        reasoning=ReasoningOptions(reasoning.effort, reasoning.summary),
        truncation=body.truncation or "disabled",
        background=body.background,
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        store=is_stored,
    )
