"""POST /v1/chat/completions"""

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.body import body_of, body_schema
from app.api.disconnect import run_unless_disconnected
from app.api.generation import Generation
from app.api.logprobs import finite, token_name
from app.api.prompts import check_token_ids, encode_chat
from app.api.sampling import TokenLimit, check_logprobs, make_choices
from app.api.schemas.chat import ChatRequest
from app.api.service import Service, ServiceDep
from app.api.sse import EventStream, encode_json, event
from app.core.step import Logprobs
from app.text.output_processor import TextDelta

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def create_chat_completion(
    body: Annotated[ChatRequest, Depends(body_of(ChatRequest))], request: Request, service: ServiceDep
) -> Response:
    """Answer a chat with n choices."""
    service.check_model(body.model)
    ready = service.ready()
    check_logprobs(service, body.top_logprobs, "top_logprobs")
    prompt = await encode_chat(service, body)
    check_token_ids(prompt, ready.vocab_size, "messages")
    if body.max_completion_tokens is not None:
        limit = TokenLimit(body.max_completion_tokens, None, "max_completion_tokens", "messages")
    else:
        limit = TokenLimit(body.max_tokens, None, "max_tokens", "messages")
    choices = make_choices(
        service,
        body,
        [prompt],
        limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    call = _Call(service, body, request.scope["request_log"].request_id)
    generation = Generation(service, choices, body.n, body.priority, request.scope["request_log"])
    if body.stream:
        return EventStream(call.events(generation, body.n), service.settings.keepalive_comment)
    return await run_unless_disconnected(request, call.whole(generation, body.n))


class _Call:
    """The answer to one request."""

    def __init__(self, service: Service, body: ChatRequest, request_id: str) -> None:
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs
        self._include_usage = body.include_usage
        self._head = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    async def whole(self, generation: Generation, n: int) -> bytes:
        """The body of an answer that is not streamed."""
        texts, logprobs = [""] * n, [list[dict[str, Any]]() for _ in range(n)]
        endings: list[TextDelta | None] = [None] * n
        async for index, delta in generation.deltas():
            texts[index] += delta.text
            logprobs[index] += [self._logprob(token) for token in delta.logprobs]
            endings[index] = delta
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": texts[index], "refusal": None},
                "logprobs": {"content": logprobs[index], "refusal": None} if self._wants_logprobs else None,
                "finish_reason": ending.finish_reason if ending else None,
                "stop_reason": ending.stop_reason if ending else None,
            }
            for index, ending in enumerate(endings)
        ]
        return encode_json({**self._head, "choices": choices, "usage": generation.usage.as_dict()})

    async def events(self, generation: Generation, n: int) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer."""
        # Most events differ in nothing but their text: the rest is encoded once.
        heads = [self._event_head(index) for index in range(n)]
        tail = b'},"logprobs":null,"finish_reason":null}]}\n\n'
        deltas = generation.deltas()
        try:
            for index in range(n):
                yield self._event(index, {"role": "assistant", "content": ""})
            async for index, delta in deltas:
                if delta.logprobs:
                    logprobs = {"content": [self._logprob(token) for token in delta.logprobs], "refusal": None}
                    yield self._event(index, {"content": delta.text}, logprobs)
                elif delta.text:
                    yield heads[index] + encode_json(delta.text) + tail
                if delta.finish_reason is not None:
                    yield self._event(index, {}, ending=delta)
            if self._include_usage:
                yield event({**self._head, "choices": [], "usage": generation.usage.as_dict()})
        finally:
            await deltas.aclose()

    def _event_head(self, index: int) -> bytes:
        head = encode_json({**self._head, "choices": [{"index": index, "delta": {"content": ""}}]})
        return b"data: " + head.removesuffix(b'""}}]}')

    def _event(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, ending: TextDelta | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if ending:
            choice |= {"finish_reason": ending.finish_reason, "stop_reason": ending.stop_reason}
        return event({**self._head, "choices": [choice]})

    def _logprob(self, token: Logprobs) -> dict[str, Any]:
        """A token with its logprob, and the most probable ones beside it."""
        entries = [
            {
                "token": token_name(self._tokenizer.token_bytes(id_)),
                "logprob": finite(value),
                "bytes": list(self._tokenizer.token_bytes(id_)),
            }
            for id_, value in zip(token.token_ids, token.logprobs, strict=True)
        ]
        return {**entries[0], "top_logprobs": entries[1:]}
