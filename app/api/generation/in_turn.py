"""Generations of one call of which each begins with what came of the one before."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ...errors import EngineUnavailableError, QueueFullError
from ..edge.request_log import RequestLog, Usage
from ..service import Service
from .choices import Choice
from .run import Generation

_PAUSE = 1.0
"""Seconds before a generation that the engine had no room for is sent again."""


@dataclass
class Written:
    """What came of a choice."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each token, where asked for."""
    vector: bytes = b""
    """See `RequestOutput`."""


class InTurn:
    """Runs them one behind another."""

    def __init__(self, service: Service, priority: int, entry: RequestLog) -> None:
        """Raises EngineUnavailableError as long as there is no engine."""
        self._service, self._priority, self._entry = service, priority, entry
        self.max_model_len = service.ready().max_model_len
        """Taken at the beginning, since engines may die."""
        self._running: Generation | None = None
        self.usage = Usage()
        """Of all that have ended together, with the times of the last."""

    async def run(self, choices: Sequence[Choice], n: int = 1) -> list[Written]:
        """The tokens of all choices, `n` for each prompt. When cancelled, it leaves nothing running."""
        self._running = running = await self._submit(choices, n)
        written = [Written() for _ in choices]
        async with aclosing(running.deltas()) as deltas:
            async for index, delta in deltas:
                written[index].token_ids += delta.token_ids
                written[index].vector = delta.vector
                written[index].logprobs += [entry.logprobs[0] for entry in delta.logprobs]
        self._count(running.usage)
        return written

    def stop(self) -> None:
        """End the work that is left."""
        if self._running is not None:
            self._running.abort()

    async def _submit(self, choices: Sequence[Choice], n: int) -> Generation:
        """Raises QueueFullError for the first one, and EngineUnavailableError if there is no engine for it.

        Later ones wait until the call's deadline, so that what is done so far is not lost. Raises DeadlineError.
        """
        while True:
            try:
                return Generation(self._service, choices, n, self._priority, self._entry)
            except QueueFullError:
                if self._running is None:
                    raise
                await asyncio.sleep(_PAUSE)
            except EngineUnavailableError:  # it has died since the one before
                if self._running is None:
                    raise
                await self._service.wait_until_ready(self._entry)

    def _count(self, usage: Usage) -> None:
        """Have the log, which has the usage of the last, tell what all took together."""
        usage.prompt_tokens += self.usage.prompt_tokens
        usage.completion_tokens += self.usage.completion_tokens
        usage.cached_tokens += self.usage.cached_tokens
        self.usage = usage
