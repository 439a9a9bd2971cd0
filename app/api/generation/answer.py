"""How the answer to a call is sent, whole or as a stream: what all endpoints that generate have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import Response

from app.api.edge.disconnect import run_unless_disconnected
from app.api.edge.request_log import RequestLog, Usage
from app.api.edge.sse import EventStream, done, encode_json, ended, event
from app.api.generation.choices import Choice
from app.api.generation.fields import SamplingFields
from app.api.generation.run import Generation
from app.api.service import Service
from app.errors import ApiError
from app.text.output_processor import TextDelta


class Answer(ABC):
    """The answer to one call. Subclasses put it into the form of their endpoint."""

    response_id: str | None = None
    """Its id, where operators may know it: with some, others could read the answer."""

    def __init__(self, service: Service, streams: bool, is_resumable: bool = False) -> None:
        """`is_resumable`: whether the body asks for what the header X-Resumable does, too."""
        self._service = service
        self._streams = streams
        self._is_resumable = is_resumable
        self._used = Usage()
        """What has been used so far."""

    async def respond(self, request: Request, choices: list[Choice], n: int, priority: int) -> Response:
        """Run the choices, `n` for each prompt, and send what comes of them. Whatever happens, none is left running."""
        entry: RequestLog = request.scope["request_log"]
        entry.is_stream, entry.response_id = self._streams, self.response_id
        generation = Generation(self._service, choices, n, priority, entry)
        self._used = generation.usage
        if self._streams:
            return self._stream(request, generation, entry)
        try:
            return await run_unless_disconnected(request, self._whole(generation))
        finally:
            generation.abort()

    def _stream(self, request: Request, generation: Generation, entry: RequestLog) -> Response:
        def end(error: ApiError | None) -> bytes:
            if error is not None:
                entry.note_error(error)
            return self.end(error)

        events, stop = ended(self._all_events(generation), end), generation.abort
        if not (self._is_resumable or request.headers.get("x-resumable") == "true"):
            return EventStream(events, stop)

        def let_go() -> None:
            generation.abort()
            entry.release()

        try:
            stream = self._service.streams.start(entry.tenant.name, entry.request_id, events, let_go)
        except ApiError:
            generation.abort()
            raise
        entry.hold()
        return EventStream(stream.read(), lambda: None)

    async def _whole(self, generation: Generation) -> bytes:
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                self.take(index, delta)
        return encode_json(self.body(generation.usage))

    async def _all_events(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        async with aclosing(generation.deltas()) as deltas:
            for data in self.first_events():
                yield data
            async for index, delta in deltas:
                for data in self.events(index, delta):
                    yield data
        for data in self.last_events(generation.usage):
            yield data

    # ------------------------------------------------------------------ a body

    @abstractmethod
    def take(self, index: int, delta: TextDelta) -> None:
        """Take in news of a choice of an answer that is not streamed."""

    @abstractmethod
    def body(self, usage: Usage) -> dict[str, Any]:
        """The answer, once all choices have ended."""

    # ------------------------------------------------------------------ a stream

    @abstractmethod
    def first_events(self) -> list[bytes]:
        """What is sent before anything is generated."""

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """The events for news of a choice."""

    @abstractmethod
    def last_events(self, usage: Usage) -> list[bytes]:
        """What is sent once all choices have ended."""

    def end(self, error: ApiError | None) -> bytes:
        """The very last bytes of a stream, whether it ended well or not."""
        return done(error)


class ChoicesAnswer(Answer):
    """An answer of several choices: what chat and completions have in common."""

    def __init__(self, service: Service, body: SamplingFields, head: dict[str, Any]) -> None:
        """`head`: what every event, or the one body, begins with."""
        super().__init__(service, body.stream, body.stream_options is not None and body.stream_options.resumable)
        self.response_id = head["id"]
        self._include_usage = body.include_usage
        self._counts_always = body.stream_options is not None and body.stream_options.continuous_usage_stats
        self._head = {**head, "created": int(time.time()), "model": service.model_name}
        if body.stream and self._include_usage:
            self._head["usage"] = None  # in every event but the last

    def body(self, usage: Usage) -> dict[str, Any]:
        """See `Answer`."""
        return {**self._head, "choices": self.choices(), "usage": usage.as_dict()}

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """All choices, once they have ended."""

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        return [event({**self._head, "choices": [], "usage": usage.as_dict()})] if self._include_usage else []

    def choice_event(self, choice: dict[str, Any]) -> bytes:
        """An event about a choice."""
        if self._counts_always:
            self._head["usage"] = self._used.as_dict()
        return event({**self._head, "choices": [choice]})

    def event_head(self, choice: dict[str, Any]) -> bytes:
        """An event's beginning, up to the text, which is the last and empty string in `choice`.

        Most events differ in nothing but their text, unless they count tokens: so the rest is encoded once.
        """
        whole = encode_json({**self._head, "choices": [choice]})
        return b"data: " + whole[: whole.rindex(b'""')]
