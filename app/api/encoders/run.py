"""The inputs of one call to a predictor, from submission to the last vector."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from ...core.media import Media
from ...core.request import FinishReason
from ...core.wire import PredictCommand, RequestOutput, RequestTiming
from ...text.tokenizer import EncoderInput
from ..edge.request_log import RequestLog, Usage
from ..service import Service
from .inputs import Text, check_number, tokenize
from .schema import EncoderFields

Vectors = list[NDArray[np.float32]]

Input = EncoderInput | Media
"""A text, or what is read in the place of one."""

_WINDOW = 256
"""How many inputs of one call the engine has at a time, so that other calls get their turn."""


class Encoded(NamedTuple):
    """The result of a call."""

    vectors: Vectors
    num_tokens: int
    inputs: Sequence[Input]

    @property
    def num_numbers(self) -> int:
        """Of all vectors."""
        return sum(vector.size for vector in self.vectors)


async def encode(service: Service, request: Request, body: EncoderFields, texts: list[Text], param: str) -> Encoded:
    """The vectors of all texts, in their order. Raises InvalidRequestError for an input that is empty or too long."""
    check_number(service, texts, param)
    return await predict(service, request, await tokenize(service, body, texts, param), body.priority)


async def predict(service: Service, request: Request, inputs: Sequence[Input], priority: int) -> Encoded:
    """The vectors of all inputs, in their order. When cancelled, it leaves nothing running."""
    entry: RequestLog = request.scope["request_log"]
    entry.usage = Usage(prompt_tokens=sum(map(_num_tokens, inputs)))
    run = _Run(service, entry, priority)
    try:
        vectors = await run.all(inputs)
    finally:
        run.abort()
    return Encoded(vectors, entry.usage.prompt_tokens, inputs)


def _num_tokens(one: Input) -> int:
    return one.num_tokens if isinstance(one, Media) else len(one.token_ids)


@dataclass
class _Open:
    """An input that the engine has."""

    index: int
    command: PredictCommand
    outputs: AsyncIterator[RequestOutput]


class _Run:
    """Submits inputs to the engine, some at a time, and collects their vectors."""

    def __init__(self, service: Service, entry: RequestLog, priority: int) -> None:
        self._service = service
        self._entry = entry
        self._priority = priority
        self._open: deque[_Open] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        if entry.deadline is not None:
            left = entry.deadline - time.monotonic()
            self._expiry = asyncio.get_running_loop().call_later(left, self._expire)

    async def all(self, inputs: Sequence[Input]) -> Vectors:
        """The vectors of all inputs, in their order."""
        self._service.check_queue(self._entry.tenant)
        vectors: Vectors = []
        for index, one in enumerate(inputs):
            if self._entry.deadline is not None and time.monotonic() > self._entry.deadline:
                raise self._service.expired(self._entry)
            if len(self._open) == _WINDOW:
                vectors.append(await self._next())
            self._submit(index, one)
        while self._open:
            vectors.append(await self._next())
        return vectors

    def _submit(self, index: int, one: Input) -> None:
        command = PredictCommand(
            request_id=self._entry.engine_id(index),
            priority=self._priority,
            tenant=self._entry.tenant.name,
            weight=self._entry.tenant.weight,
            arrived_at=self._entry.arrived_at,
        )
        if isinstance(one, Media):
            command.media = one
        else:
            command.token_ids, command.type_ids, command.num_ignored = one[:3]
        self._open.append(_Open(index, command, self._service.engine.generate(command)))
        self._service.metrics.record_admitted(command.num_tokens)
        self._service.use_tokens(self._entry.tenant, "prompt", command.num_tokens)

    async def _next(self) -> NDArray[np.float32]:
        first = self._open[0]
        output = await anext(first.outputs)
        self._open.popleft()
        assert output.finish_reason is not None
        self._record_finished(first, output.finish_reason, output.timing)
        if output.finish_reason is FinishReason.TIMEOUT:
            raise self._service.expired(self._entry)
        if output.finish_reason is not FinishReason.STOP:
            raise self._service.failed(output.error)
        return np.frombuffer(output.vector, dtype=np.float32)

    def _record_finished(self, one: _Open, reason: FinishReason, timing: RequestTiming | None) -> None:
        seconds = time.monotonic() - one.command.arrived_at
        self._service.metrics.record_finished(reason, seconds, timing)
        self._entry.note_end(one.index, reason, timing)

    def _expire(self) -> None:
        for one in self._open:
            self._service.engine.expire(one.command.request_id)

    def abort(self) -> None:
        """Abort the inputs that the engine still has."""
        if self._expiry is not None:
            self._expiry.cancel()
        for one in self._open:
            self._service.engine.abort(one.command.request_id)
            self._record_finished(one, FinishReason.ABORT, None)
        self._open.clear()
