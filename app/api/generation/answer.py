"""How all generating endpoints send an answer, whole or as a stream."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal

from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from ...core.request import FinishReason
from ...errors import ApiError
from ...text.output_processor import TextDelta
from ..edge.answer import AnswerBody, run_unless_disconnected
from ..edge.request_log import RequestLog, Usage
from ..edge.sse import EventStream, done, ended, event
from ..service import Service
from .choices import Choice
from .fields import SamplingFields
from .run import Generation
from .timings import Timings


class Answer(ABC):
    """The answer to one call. Subclasses give it the form of their endpoint."""

    response_id: str | None = None
    """The answer's id for traces; None where whoever knows the id could read the answer."""

    def __init__(self, service: Service, streams: bool, is_resumable: bool = False) -> None:
        """`is_resumable`: whether the body asks for a resumable stream, as the header X-Resumable does."""
        self._service = service
        self._streams = streams
        self._is_resumable = is_resumable
        self._used = Usage()
        """Token counts so far."""

    async def respond(self, request: Request, choices: list[Choice], n: int, priority: int) -> Response:
        """Run the choices, `n` for each prompt, and send their texts. Whatever happens, none is left running."""
        entry: RequestLog = request.scope["request_log"]
        generation = self._begin(entry, choices, n, priority)
        if self._streams:
            return self._stream(request, generation, entry)
        try:
            return await run_unless_disconnected(request, self._whole(generation))
        finally:
            generation.abort()

    def run_alone(
        self, entry: RequestLog, choice: Choice, priority: int, send: Callable[[bytes], None]
    ) -> asyncio.Task[None]:
        """Run a choice without a connection, and `send` what a stream would. Cancelling the task ends the work."""
        generation = self._begin(entry, [choice], 1, priority)
        entry.hold()

        async def run() -> None:
            async with aclosing(self._ended_events(generation, entry)) as events:
                async for data in events:
                    send(data)

        def let_go(_: asyncio.Task[None]) -> None:
            generation.abort()
            entry.release()

        task = asyncio.create_task(run())
        task.add_done_callback(let_go)
        return task

    def _begin(self, entry: RequestLog, choices: list[Choice], n: int, priority: int) -> Generation:
        entry.is_stream, entry.response_id = self._streams, self.response_id
        generation = Generation(self._service, choices, n, priority, entry)
        self._used = generation.usage
        return generation

    def _ended_events(self, generation: Generation, entry: RequestLog) -> AsyncGenerator[bytes, None]:
        def end(error: ApiError | None) -> bytes:
            if error is not None:
                entry.note_error(error)
            return self.end(error)

        return ended(self._all_events(generation), end)

    def _stream(self, request: Request, generation: Generation, entry: RequestLog) -> Response:
        events, stop = self._ended_events(generation, entry), generation.abort
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

    async def _whole(self, generation: Generation) -> AnswerBody:
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                self.take(index, delta)
        return self.body(generation.usage)

    async def _all_events(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        first = self.first_events
        async with aclosing(generation.deltas()) as deltas:
            for data in self.opening_events():
                yield data
            async for index, delta in deltas:
                for data in (*first(), *self.events(index, delta)):
                    yield data
                first = list  # there are no more of them
        for data in self.last_events(generation.usage):
            yield data

    # ------------------------------------------------------------------ a body

    @abstractmethod
    def take(self, index: int, delta: TextDelta) -> None:
        """Add a delta of a choice to an answer that is not streamed."""

    @abstractmethod
    def body(self, usage: Usage) -> AnswerBody:
        """The answer, once all choices have ended."""

    # ------------------------------------------------------------------ a stream

    def opening_events(self) -> list[bytes]:
        """The events that do not wait for the engine."""
        return []

    def first_events(self) -> list[bytes]:
        """The events in front of the first delta's. They wait for it: only then is known what was cached."""
        return []

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """The events for a delta of a choice."""

    @abstractmethod
    def last_events(self, usage: Usage) -> list[bytes]:
        """The events once all choices have ended."""

    def end(self, error: ApiError | None) -> bytes:
        """The last bytes of a stream. `error`: why it failed, if it did."""
        return done(error)


class PromptTokensDetails(AnswerBody):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionTokensDetails(AnswerBody):
    """Of the completion's tokens."""

    reasoning_tokens: int


class CompletionUsage(AnswerBody):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        """In the form of OpenAI's API."""
        total = usage.prompt_tokens + usage.completion_tokens
        return cls(
            usage.prompt_tokens,
            usage.completion_tokens,
            total,
            PromptTokensDetails(usage.cached_tokens),
            CompletionTokensDetails(usage.reasoning_tokens),
        )


class Chunk(AnswerBody, kw_only=True):
    """An event of a streamed chat or completion."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: CompletionUsage | UnsetType | None = UNSET
    """With include_usage. It is null in all events but the last, unless continuous_usage_stats is given, too."""
    timings: Timings | UnsetType = UNSET
    """Only in the last event."""
    choices: list[Any]


class ChoicesAnswer(Answer):
    """An answer with several choices, as chat and completions have it."""

    def __init__(
        self, service: Service, body: SamplingFields, response_id: str, chunk: type[Chunk], num_choices: int
    ) -> None:
        """`chunk`: the type of its events. There are so many choices."""
        super().__init__(service, body.stream, body.stream_options is not None and body.stream_options.resumable)
        self.response_id = response_id
        self._num_open = num_choices
        self._include_usage = body.include_usage
        self._counts_always = body.stream_options is not None and body.stream_options.continuous_usage_stats
        self._head: dict[str, Any] = {
            "id": response_id,
            "created": int(time.time()),
            "model": service.name_of(body.model),
            "system_fingerprint": service.fingerprint,
        }
        self._chunk = chunk(**self._head, usage=None if self._include_usage else UNSET, choices=[])
        """The one event object, which is filled and encoded for each event."""

    def last_events(self, usage: Usage) -> list[bytes]:
        """See `Answer`."""
        if not self._include_usage:
            return []
        self._chunk.choices, self._chunk.usage = [], CompletionUsage.of(usage)
        self._chunk.timings = Timings.of(usage)
        return [event(self._chunk)]

    def choice_event(self, choice: AnswerBody) -> bytes:
        """An event about a choice."""
        self._chunk.choices = [choice]
        if self._counts_always:
            self._chunk.usage = CompletionUsage.of(self._used)
        return event(self._chunk)

    def ending_event(self, choice: AnswerBody) -> bytes:
        """The last event about a choice."""
        self._num_open -= 1
        if not (self._num_open or self._include_usage):  # no event follows
            self._chunk.timings = Timings.of(self._used)
        return self.choice_event(choice)

    def split_event(self, choice: AnswerBody) -> tuple[bytes, bytes]:
        """The bytes of an event before and after its text, which is the last empty string in `choice`.

        Most events differ only in their text. So the rest is encoded once.
        """
        head, tail = self.choice_event(choice).rsplit(b'""', 1)
        return head, tail


def ended_by(delta: TextDelta) -> Literal["stop", "length"]:
    """Why a choice has ended with this delta, in the words of OpenAI's API."""
    return "length" if delta.finish_reason is FinishReason.LENGTH else "stop"
