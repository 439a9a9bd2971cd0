"""POST /v1/chat/completions"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import ChoicesAnswer
from app.api.body import body_of, body_schema
from app.api.chat_choices import choices_of_chat
from app.api.logprobs import describe
from app.api.sampling import TokenLimit
from app.api.schemas.chat import ChatRequest
from app.api.service import Service, ServiceDep
from app.api.sse import encode_json, event
from app.text.output_processor import TextDelta

router = APIRouter()

_EVENT_TAIL = b'},"logprobs":null,"finish_reason":null}]}\n\n'


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def create_chat_completion(
    body: Annotated[ChatRequest, Depends(body_of(ChatRequest))], request: Request, service: ServiceDep
) -> Response:
    """Answer a chat with n choices."""
    service.check_model(body.model)
    if body.max_completion_tokens is not None:
        limit = TokenLimit(body.max_completion_tokens, None, "max_completion_tokens", "messages")
    else:
        limit = TokenLimit(body.max_tokens, None, "max_tokens", "messages")
    choices = await choices_of_chat(service, body, limit)
    answer = _ChatAnswer(service, body, request.scope["request_log"].request_id)
    return await answer.respond(request, choices, body.n, body.priority)


class _ChatAnswer(ChoicesAnswer):
    """Messages of the assistant."""

    def __init__(self, service: Service, body: ChatRequest, request_id: str) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(service, body, {"id": f"chatcmpl-{request_id}", "object": kind})
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs
        self._texts: list[list[str]] = [[] for _ in range(body.n)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(body.n)]
        self._endings: list[TextDelta | None] = [None] * body.n
        self._event_heads: list[bytes] = []

    def take(self, index: int, delta: TextDelta) -> None:
        """See `Answer`."""
        self._texts[index].append(delta.text)
        self._logprobs[index] += (describe(self._tokenizer, token) for token in delta.logprobs)
        self._endings[index] = delta

    def choices(self) -> list[dict[str, Any]]:
        """See `Answer`."""
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(self._texts[index]), "refusal": None},
                "logprobs": {"content": self._logprobs[index], "refusal": None} if self._wants_logprobs else None,
                "finish_reason": ending.finish_reason if ending else None,
                "stop_reason": ending.stop_reason if ending else None,
            }
            for index, ending in enumerate(self._endings)
        ]

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        indices = range(len(self._endings))
        self._event_heads = [self.event_head({"index": index, "delta": {"content": ""}}) for index in indices]
        return [self._event(index, {"role": "assistant", "content": ""}) for index in indices]

    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """See `Answer`."""
        result = []
        if delta.logprobs:
            logprobs = {"content": [describe(self._tokenizer, token) for token in delta.logprobs], "refusal": None}
            result.append(self._event(index, {"content": delta.text}, logprobs))
        elif delta.text:
            result.append(self._event_heads[index] + encode_json(delta.text) + _EVENT_TAIL)
        if delta.finish_reason is not None:
            result.append(self._event(index, {}, ending=delta))
        return result

    def _event(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, ending: TextDelta | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if ending:
            choice |= {"finish_reason": ending.finish_reason, "stop_reason": ending.stop_reason}
        return event({**self._head, "choices": [choice]})
