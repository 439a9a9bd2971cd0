"""A message as Anthropic's API writes it, whole and as events."""

from typing import Any

from pydantic_core import from_json

from app.api.chat.prepare import Chat
from app.api.chat.schema import ChatRequest
from app.api.edge.errors import anthropic_error_body
from app.api.edge.request_log import Usage
from app.api.edge.sse import named_event
from app.api.generation.blocks import Block, BlocksAnswer, Change, Kind
from app.api.messages.schema import MessagesRequest
from app.api.service import Service
from app.errors import ApiError

_DELTAS = {
    Kind.TEXT: ("text_delta", "text"),
    Kind.REASONING: ("thinking_delta", "thinking"),
    Kind.TOOL_CALL: ("input_json_delta", "partial_json"),
}
"""For each kind of block: the type of its deltas, and the field with what is new."""


class MessageAnswer(BlocksAnswer):
    """One message of the assistant."""

    def __init__(self, service: Service, body: MessagesRequest, chat: ChatRequest, run: Chat, request_id: str) -> None:
        """`chat`: what `body` was translated to, and `run` what was made of that."""
        super().__init__(service, chat.stream, run.new_parser(), chat.parallel_tool_calls)
        self.response_id = f"msg_{request_id}"
        self._request_id = request_id
        self._max_tokens = body.max_tokens
        self._num_prompt_tokens = len(run.choices[0].prompt_token_ids)
        self._head = {
            "id": self.response_id,
            "type": "message",
            "role": "assistant",
            "model": service.model_name,
        }

    def body(self, usage: Usage) -> dict[str, Any]:
        """See `Answer`."""
        content = [_content_block(block) for block in self._blocks.all]
        return {**self._head, "content": content, **self._stop(usage), "usage": _usage(usage)}

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        usage = _usage(Usage(prompt_tokens=self._num_prompt_tokens))
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [named_event({"type": "message_start", "message": message}), named_event({"type": "ping"})]

    def write(self, change: Change) -> list[bytes]:
        """See `BlocksAnswer`."""
        block, text = change.block, change.text
        if text is not None:
            kind, field = _DELTAS[block.kind]
            return [_block_event("delta", block, delta={"type": kind, field: text})]
        if block.is_over:
            return [_block_event("stop", block)]
        return [_block_event("start", block, content_block=_content_block(block))]

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        delta = {"type": "message_delta", "delta": self._stop(usage), "usage": _usage(usage)}
        return [named_event(delta), named_event({"type": "message_stop"})]

    def end(self, error: ApiError | None) -> bytes:
        """See `Answer`."""
        return b"" if error is None else named_event(anthropic_error_body(error, self._request_id))

    def _stop(self, usage: Usage) -> dict[str, str | None]:
        """Why the message ended."""
        reason = self._ending.stop_reason if self._ending else None
        if isinstance(reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": reason}
        if self._is_cut:
            is_full = usage.completion_tokens < self._max_tokens
            return {"stop_reason": "model_context_window_exceeded" if is_full else "max_tokens", "stop_sequence": None}
        calls = any(block.kind is Kind.TOOL_CALL for block in self._blocks.all)
        return {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}


def _block_event(what: str, block: Block, **fields: Any) -> bytes:
    return named_event({"type": f"content_block_{what}", "index": block.index, **fields})


def _content_block(block: Block) -> dict[str, Any]:
    if block.kind is Kind.TEXT:
        return {"type": "text", "text": block.text}
    if block.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block.text)}


def _input(arguments: str) -> Any:
    """The arguments of a call, which may be cut off by its length: what there is of them."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts cached tokens apart from the others of the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
