"""Responses that are generated without a connection, until they are done, cancelled, or their process ends."""

import asyncio

from ..edge.request_log import RequestLog
from ..edge.resumable import Feed, ResumableStreams
from ..generation.choices import Choice
from .answer import ResponseAnswer
from .response import ResponseObject


class Background:
    """The responses of this process that are being generated. The engine's queue bounds their number."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], tuple[ResponseAnswer, asyncio.Task[None]]] = {}
        """By owner and id."""

    def start(
        self,
        entry: RequestLog,
        answer: ResponseAnswer,
        choice: Choice,
        priority: int,
        streams: ResumableStreams | None,
    ) -> ResponseObject:
        """Begin to generate a response, which is stored at its end. Returns its present state.

        `streams`: what keeps its events, by its id, if they are wanted. Raises ApiError if there is no room.
        """
        response, feed = answer.so_far, Feed()
        key = entry.tenant.name, response.id
        if streams is None:
            feed.drop()
        else:
            streams.start(*key, feed.events(), feed.drop)

        def done(_: asyncio.Task[None]) -> None:
            del self._running[key]
            feed.end()

        task = answer.run_alone(entry, choice, priority, feed.send)
        self._running[key] = answer, task
        task.add_done_callback(done)
        return response

    def find(self, owner: str, response_id: str) -> ResponseObject | None:
        """A response in its present state, while it is generated."""
        running = self._running.get((owner, response_id))
        return running[0].so_far if running else None

    async def cancel(self, owner: str, response_id: str) -> None:
        """End a response if it is still generated. It is stored as it is."""
        if (owner, response_id) not in self._running:
            return
        answer, task = self._running[owner, response_id]
        task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            answer.cancel()
