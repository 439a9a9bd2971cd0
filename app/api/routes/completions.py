"""POST /v1/completions"""

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.body import body_of, body_schema
from app.api.disconnect import run_unless_disconnected
from app.api.generation import Generation
from app.api.logprobs import finite, num_characters, token_name
from app.api.prompts import check_token_ids, encode_texts
from app.api.sampling import TokenLimit, check_logprobs, make_choices
from app.api.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from app.api.service import Service, ServiceDep
from app.api.sse import EventStream, encode_json, event
from app.core.step import Logprobs
from app.errors import InvalidRequestError
from app.text.output_processor import TextDelta

router = APIRouter()


@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def create_completion(
    body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))], request: Request, service: ServiceDep
) -> Response:
    """Continue a text, or several, with n choices each."""
    service.check_model(body.model)
    service.ready()
    check_logprobs(service, body.logprobs, "logprobs")
    choices = make_choices(
        service,
        body,
        await _prompts(service, body),
        TokenLimit(body.max_tokens, DEFAULT_MAX_TOKENS, "max_tokens", "prompt"),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    call = _Call(service, body, request.scope["request_log"].request_id)
    generation = Generation(service, choices, body.n, body.priority, request.scope["request_log"])
    writers = [_ChoiceWriter(service, body, choice.prompt_token_ids) for choice in choices]
    if body.stream:
        return EventStream(call.events(generation, writers), service.settings.keepalive_comment)
    return await run_unless_disconnected(request, call.whole(generation, writers))


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    """The prompts as lists of token ids; InvalidRequestError if one is empty or names unknown tokens."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not prompt:
        raise InvalidRequestError("prompt: must not be empty", "prompt")
    prompts = await encode_texts(service, prompt) if isinstance(prompt[0], str) else prompt
    for token_ids in prompts:
        check_token_ids(token_ids, service.ready().vocab_size, "prompt")
    return prompts


class _ChoiceWriter:
    """Puts a choice's news into the form of the API: text, and logprobs with their places in the text."""

    def __init__(self, service: Service, body: CompletionRequest, prompt: list[int]) -> None:
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs is not None
        self._offset = 0
        self._echo = list(prompt) if body.echo else []
        self._echo_logprobs: list[Logprobs] = []

    def write(self, delta: TextDelta) -> tuple[str, dict[str, Any] | None]:
        """The text and logprobs to send for a delta."""
        text, tokens = delta.text, delta.logprobs
        self._echo_logprobs += delta.prompt_logprobs
        if self._echo:
            if not (delta.token_ids or delta.finish_reason):  # the prompt is still being computed
                return "", None
            text = self._tokenizer.decode(self._echo, skip_special_tokens=False) + text
            first = Logprobs(self._echo[:1], [])  # nothing predicts a text's first token
            tokens = [first, *self._echo_logprobs, *tokens] if self._wants_logprobs else []
            self._echo = []
        return text, self._logprobs(tokens) if self._wants_logprobs else None

    def _logprobs(self, tokens: list[Logprobs]) -> dict[str, Any]:
        result: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            values = [self._tokenizer.token_bytes(id_) for id_ in token.token_ids]
            logprobs = [finite(logprob) for logprob in token.logprobs]
            result["tokens"].append(token_name(values[0]))
            result["token_logprobs"].append(logprobs[0] if logprobs else None)
            result["top_logprobs"].append(_by_name(values, logprobs) if logprobs else None)
            result["text_offset"].append(self._offset)
            self._offset += num_characters(values[0])
        return result


def _by_name(values: list[bytes], logprobs: list[float]) -> dict[str, float]:
    """Logprobs by the tokens' names; the higher one where two tokens have the same."""
    result: dict[str, float] = {}
    for value, logprob in zip(values, logprobs, strict=True):
        name = token_name(value)
        result[name] = max(logprob, result.get(name, logprob))
    return result


class _Call:
    """The answer to one request."""

    def __init__(self, service: Service, body: CompletionRequest, request_id: str) -> None:
        self._include_usage = body.include_usage
        self._head = {
            "id": f"cmpl-{request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    async def whole(self, generation: Generation, writers: list[_ChoiceWriter]) -> bytes:
        """The body of an answer that is not streamed."""
        choices = [_choice(index, "", None) for index in range(len(writers))]
        async for index, delta in generation.deltas():
            text, logprobs = writers[index].write(delta)
            choice = choices[index]
            choice["text"] += text
            choice["finish_reason"] = delta.finish_reason
            choice["stop_reason"] = delta.stop_reason
            if logprobs and choice["logprobs"]:
                for name, values in logprobs.items():
                    choice["logprobs"][name] += values
            elif logprobs:
                choice["logprobs"] = logprobs
        return encode_json({**self._head, "choices": choices, "usage": generation.usage.as_dict()})

    async def events(self, generation: Generation, writers: list[_ChoiceWriter]) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer."""
        # Most events differ in nothing but their text: the rest is encoded once.
        heads = [self._event_head(index) for index in range(len(writers))]
        tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
        deltas = generation.deltas()
        try:
            async for index, delta in deltas:
                text, logprobs = writers[index].write(delta)
                if delta.finish_reason is None and logprobs is None:
                    if delta.token_ids:
                        yield heads[index] + encode_json(text) + tail
                    continue
                choice = _choice(index, text, logprobs, delta)
                yield event({**self._head, "choices": [choice]})
            if self._include_usage:
                yield event({**self._head, "choices": [], "usage": generation.usage.as_dict()})
        finally:
            await deltas.aclose()

    def _event_head(self, index: int) -> bytes:
        head = encode_json({**self._head, "choices": [{"index": index, "text": ""}]})
        return b"data: " + head.removesuffix(b'""}]}')


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, delta: TextDelta | None = None) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": delta.finish_reason if delta else None,
        "stop_reason": delta.stop_reason if delta else None,
    }
