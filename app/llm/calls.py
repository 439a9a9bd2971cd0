"""What a program asks of the service, as coroutines of the service's event loop."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from ..api.edge.inside import request_inside
from ..api.service import Service
from ..errors import ApiError, InvalidRequestError
from ..tenants import EVERYBODY
from . import generating
from .results import Classification, Piece, Ranked, Result

Done = Callable[[int], None]
"""Called with a number of tokens when a prompt or some texts are done."""
T = TypeVar("T")
U = TypeVar("U")

_TEXTS_A_CALL = 64
"""Texts that an encoder is given at once, beside those of other calls."""
_ENCODER_CALLS = 4


class Calls:
    """The calls of one program. All of its threads together have so many prompts in the engine that none is refused."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.service: Service = app.state.service
        seqs, queue = self.service.ready().max_num_seqs, self.service.settings.max_queue
        self._window = seqs + min(seqs, queue)
        self._room = asyncio.Semaphore(self._window)
        self._encoder_room = asyncio.Semaphore(_ENCODER_CALLS)

    async def generate(self, prompts: Sequence[Any], fields: Mapping[str, Any], done: Done) -> list[Result]:
        """A result for each text, or list of token ids. The first error ends all. Raises ApiError."""
        return await self._all(generating.completion, ("prompt", "prompts"), prompts, fields, done)

    async def chat(self, chats: Sequence[Any], fields: Mapping[str, Any], done: Done) -> list[Result]:
        """A result for each list of messages. The first error ends all. Raises ApiError."""
        return await self._all(generating.chat, ("messages", "messages"), chats, fields, done)

    async def _all(
        self,
        begin: Callable[[Service, Any, Mapping[str, Any]], Awaitable[generating.Call]],
        names: tuple[str, str],
        prompts: Sequence[Any],
        fields: Mapping[str, Any],
        done: Done,
    ) -> list[Result]:
        """`names`: of the field that a prompt is, and of the argument that holds all of them."""

        async def one(item: tuple[int, Any]) -> Result:
            index, prompt = item
            async with self._room:
                try:
                    call = await begin(self.service, prompt, fields)
                except InvalidRequestError as error:
                    if len(prompts) > 1:
                        _name(error, *names, index)
                    raise
                result = await call.result()
            done(len(result.prompt_token_ids) + result.timings.predicted_n)
            return result

        return await _in_order(one, list(enumerate(prompts)), self._window)

    async def stream(self, prompt: Any, fields: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """The pieces of a text. Raises ApiError."""
        async with self._room, aclosing((await generating.completion(self.service, prompt, fields)).pieces()) as pieces:
            async for piece in pieces:
                yield piece

    async def stream_chat(self, messages: Any, fields: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer. Raises ApiError."""
        async with self._room, aclosing((await generating.chat(self.service, messages, fields)).pieces()) as pieces:
            async for piece in pieces:
                yield piece

    # ------------------------------------------------------------------ encoders

    async def embed(self, texts: Sequence[Any], fields: Mapping[str, Any], done: Done) -> NDArray[np.float32]:
        """The vectors of texts: [texts, dimensions], in the order of the texts. Raises ApiError."""
        answers = await self._encode("/v1/embeddings", texts, {**fields, "encoding_format": "base64"}, done)
        vectors = [np.frombuffer(base64.b64decode(one["embedding"]), np.float32) for one in answers]
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    async def classify(self, texts: Sequence[Any], fields: Mapping[str, Any], done: Done) -> list[Classification]:
        """The labels of texts. Raises ApiError."""
        self.service.check_task("classify")
        answers = await self._encode("/v1/classify", texts, fields, done)
        return [Classification(one["label"], one["probs"]) for one in answers]

    async def score(self, text_1: Any, text_2: Any, fields: Mapping[str, Any]) -> list[float]:
        """Scores of pairs of texts. Raises ApiError."""
        answer = await self._post("/v1/score", {**fields, "text_1": text_1, "text_2": text_2})
        return [one["score"] for one in answer["data"]]

    async def rerank(self, query: str, documents: list[str], fields: Mapping[str, Any]) -> list[Ranked]:
        """Documents by how well they answer a query, the best first. Raises ApiError."""
        answer = await self._post("/v1/rerank", {**fields, "query": query, "documents": documents})
        return [Ranked(one["index"], one["relevance_score"]) for one in answer["results"]]

    async def _encode(self, path: str, texts: Sequence[Any], fields: Mapping[str, Any], done: Done) -> list[Any]:
        async def some(start: int) -> list[Any]:
            part = list(texts[start : start + _TEXTS_A_CALL])
            async with self._encoder_room:
                answer = await self._post(path, {**fields, "input": part})
            for _ in part:
                done(answer["usage"]["total_tokens"] // len(part))
            return list(answer["data"])

        parts = await _in_order(some, range(0, len(texts), _TEXTS_A_CALL), _ENCODER_CALLS)
        return [one for part in parts for one in part]

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer of an endpoint. Raises ApiError."""
        answer = await request_inside(self._app, EVERYBODY, "POST", path, json.dumps(body).encode())
        content = json.loads(answer.body)
        if answer.status != 200:
            error = content["error"]
            raise ApiError.of(answer.status, error["message"], error["param"], error["code"])
        return content


def _name(error: InvalidRequestError, field: str, argument: str, index: int) -> None:
    """Have an error about a prompt say which of several it is."""
    given = error.param or ""
    if given.partition("[")[0] == field:
        error.param = f"{argument}[{index}]{given.removeprefix(field)}"
        error.message = f"{error.param}: {error.message.removeprefix(f'{given}: ')}"
        error.args = (error.message,)


async def _in_order(work: Callable[[T], Awaitable[U]], items: Sequence[T], window: int) -> list[U]:
    """Work on all items, so many at a time; the results in the order of the items. The first error ends all."""
    results: dict[int, U] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, item in waiting:
            results[index] = await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(window, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[index] for index in range(len(items))]
