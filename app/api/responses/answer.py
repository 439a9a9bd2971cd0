"""A response as OpenAI's API writes it, whole and as events."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from app.api.chat.parts import Fields, assistant_message, tool_call
from app.api.chat.prepare import Chat
from app.api.chat.schema import ChatRequest
from app.api.edge.request_log import Usage
from app.api.edge.sse import named_event
from app.api.generation.blocks import Block, BlocksAnswer, Change, Kind
from app.api.generation.choices import Choice
from app.api.generation.logprobs import describe
from app.api.responses.schema import ResponsesRequest
from app.api.service import Service
from app.core.sampling import Logprobs
from app.errors import ApiError

_PREFIXES = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.TOOL_CALL: "fc"}
_EVENTS = {Kind.TEXT: "output_text", Kind.REASONING: "reasoning_text", Kind.TOOL_CALL: "function_call_arguments"}
"""What the events of a block's text are called."""


class ResponseAnswer(BlocksAnswer):
    """One response."""

    def __init__(
        self,
        service: Service,
        body: ResponsesRequest,
        chat: ChatRequest,
        run: Chat,
        messages: list[Fields],
        keep: Callable[[str, Fields, list[Fields]], None] | None,
    ) -> None:
        """`chat`: what `body` was translated to, and `run` what was made of that.

        `messages`: the conversation so far, which `keep` keeps with the response's id and body, if it is to be kept.
        """
        super().__init__(service, chat.stream, run.new_parser(), chat.parallel_tool_calls)
        self._tokenizer = service.tokenizer
        self._messages = messages
        self._keep = keep
        # Not the request's id, which a client chooses: who knows the id of a stored response can read it.
        self._unique = uuid.uuid4().hex
        self._id = f"resp_{self._unique}"
        self._created = int(time.time())
        self._echo = _echo(service, body, run.choices[0]) | {"store": keep is not None}
        self._sequence_number = 0

    # ------------------------------------------------------------------ a body

    def body(self, usage: Usage) -> dict[str, Any]:
        """See `Answer`."""
        response = self._response("incomplete" if self._is_cut else "completed", usage)
        if self._keep is not None:
            self._keep(self._id, response, [*self._messages, self._message()])
        return response

    def _response(self, status: str, usage: Usage | None = None, error: ApiError | None = None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None if error is None else {"code": _error_code(error), "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._item(block) for block in self._blocks.all],
            "usage": None if usage is None else self._usage(usage),
            **self._echo,
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _message(self) -> Fields:
        """What the assistant said, for the next response; a call that was cut is none."""
        blocks = {kind: [block for block in self._blocks.all if block.kind is kind] for kind in Kind}
        calls = [block for block in blocks[Kind.TOOL_CALL] if not self._is_incomplete(block)]
        return assistant_message(
            [block.text for block in blocks[Kind.TEXT]],
            "".join(block.text for block in blocks[Kind.REASONING]),
            [tool_call(block.call_id, block.name, block.text) for block in calls],
        )

    def _item(self, block: Block) -> dict[str, Any]:
        """A block as an output item, as far as it has come."""
        status = "in_progress" if not block.is_over else "incomplete" if self._is_incomplete(block) else "completed"
        head = {"id": self._item_id(block), "status": status}
        if block.kind is Kind.TOOL_CALL:
            call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {**head, "type": "function_call", **call}
        content = [self._part(block)] if block.is_over else []
        if block.kind is Kind.REASONING:
            return {**head, "type": "reasoning", "summary": [], "content": content}
        return {**head, "type": "message", "role": "assistant", "content": content}

    def _part(self, block: Block) -> dict[str, Any]:
        """The one part of an item's content."""
        if block.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": block.text}
        logprobs = self._logprobs(block.logprobs)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._unique}_{block.index}"

    def _logprobs(self, tokens: Sequence[Logprobs]) -> list[dict[str, Any]]:
        return [describe(self._tokenizer, token) for token in tokens]

    # ------------------------------------------------------------------ a stream

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        response = self._response("in_progress")
        return [self._event("created", response=response), self._event("in_progress", response=response)]

    def write(self, change: Change) -> list[bytes]:
        """See `BlocksAnswer`."""
        block = change.block
        if change.text is not None:
            logprobs = {"logprobs": self._logprobs(change.logprobs)} if block.kind is Kind.TEXT else {}
            return [self._text_event("delta", block, delta=change.text, **logprobs)]
        if block.is_over:
            return self._block_ends(block)
        events = [self._event("output_item.added", output_index=block.index, item=self._item(block))]
        if block.kind is not Kind.TOOL_CALL:
            events.append(self._part_event("content_part.added", block, part=self._part(block)))
        return events

    def _block_ends(self, block: Block) -> list[bytes]:
        item = self._item(block)
        if block.kind is Kind.TOOL_CALL:
            events = [self._text_event("done", block, arguments=block.text, name=block.name)]
        else:
            part = item["content"][0]
            logprobs = {"logprobs": part["logprobs"]} if block.kind is Kind.TEXT else {}
            events = [
                self._text_event("done", block, text=block.text, **logprobs),
                self._part_event("content_part.done", block, part=part),
            ]
        return [*events, self._event("output_item.done", output_index=block.index, item=item)]

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        response = self.body(usage)
        return [self._event(response["status"], response=response)]

    def end(self, error: ApiError | None) -> bytes:
        """See `Answer`."""
        if error is None:
            return b""
        told = {"type": "error", "code": _error_code(error), "message": error.message, "param": error.param}
        failed = self._response("failed", error=error)
        return self._numbered(told) + self._event("failed", response=failed)

    def _text_event(self, what: str, block: Block, **fields: Any) -> bytes:
        name = f"{_EVENTS[block.kind]}.{what}"
        if block.kind is Kind.TOOL_CALL:
            return self._event(name, item_id=self._item_id(block), output_index=block.index, **fields)
        return self._part_event(name, block, **fields)

    def _part_event(self, name: str, block: Block, **fields: Any) -> bytes:
        where = {"item_id": self._item_id(block), "output_index": block.index, "content_index": 0}
        return self._event(name, **where, **fields)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        return self._numbered({"type": f"response.{name}", **fields})

    def _numbered(self, data: dict[str, Any]) -> bytes:
        data["sequence_number"] = self._sequence_number
        self._sequence_number += 1
        return named_event(data)


def _error_code(error: ApiError) -> str:
    """As OpenAI's SDKs know them."""
    return "rate_limit_exceeded" if error.status == 429 else "server_error"


def _echo(service: Service, body: ResponsesRequest, choice: Choice) -> dict[str, Any]:
    """What a response repeats of its request."""
    asked = body.model_dump(by_alias=True, exclude_none=True, include={"tools", "tool_choice", "text"})
    return {
        "model": service.model_name,
        "instructions": body.instructions,
        "metadata": body.metadata,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "temperature": choice.sampling.temperature,
        "top_p": choice.sampling.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "tools": [{"parameters": None, "strict": None, **tool} for tool in asked["tools"]],
        "tool_choice": asked.get("tool_choice", "auto"),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": asked["text"],
        "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
