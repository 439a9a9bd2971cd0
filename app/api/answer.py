"""How the answer to a call is sent, whole or as a stream: what chat and completions have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import Response

from app.api.disconnect import run_unless_disconnected
from app.api.generation import Choice, Generation
from app.api.schemas.common import SamplingFields
from app.api.service import Service
from app.api.sse import EventStream, encode_json, event
from app.text.output_processor import TextDelta


class Answer(ABC):
    """The answer to one call. Subclasses put it into the form of their endpoint."""

    def __init__(self, service: Service, body: SamplingFields, head: dict[str, Any]) -> None:
        """`head`: what every event, or the one body, begins with."""
        self._service = service
        self._streams = body.stream
        self._include_usage = body.include_usage
        self._head = {**head, "created": int(time.time()), "model": service.model_name}

    async def respond(self, request: Request, choices: list[Choice], n: int, priority: int) -> Response:
        """Run the choices, `n` for each prompt, and send what comes of them. Whatever happens, none is left running."""
        generation = Generation(self._service, choices, n, priority, request.scope["request_log"])
        if self._streams:
            return EventStream(self._all_events(generation), generation.abort, self._service.settings.keepalive_comment)
        try:
            return await run_unless_disconnected(request, self._whole(generation))
        finally:
            generation.abort()

    async def _whole(self, generation: Generation) -> bytes:
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                self.take(index, delta)
        return encode_json({**self._head, "choices": self.choices(), "usage": generation.usage.as_dict()})

    async def _all_events(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        if self._include_usage:
            self._head["usage"] = None  # in every event but the last
        async with aclosing(generation.deltas()) as deltas:
            for data in self.first_events():
                yield data
            async for index, delta in deltas:
                for data in self.events(index, delta):
                    yield data
        if self._include_usage:
            yield event({**self._head, "choices": [], "usage": generation.usage.as_dict()})

    # ------------------------------------------------------------------ a body

    @abstractmethod
    def take(self, index: int, delta: TextDelta) -> None:
        """Take in news of a choice of an answer that is not streamed."""

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """All choices, once they have ended."""

    # ------------------------------------------------------------------ a stream

    def first_events(self) -> list[bytes]:
        """What is sent before anything is generated."""
        return []

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """The events for news of a choice."""

    def event_head(self, choice: dict[str, Any]) -> bytes:
        """An event's beginning, up to the text, which is the last and empty string in `choice`.

        Most events differ in nothing but their text: so the rest is encoded once.
        """
        whole = encode_json({**self._head, "choices": [choice]})
        return b"data: " + whole[: whole.rindex(b'""')]
