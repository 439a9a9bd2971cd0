"""Streams that a client may continue to read over another connection, from the event after the last one that it saw.

Generation continues without a reader for the length of the resume window. Events are numbered, and kept until the
window has passed (`id` and `Last-Event-ID` of server-sent events: WHATWG HTML, section 9.2).
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from ...errors import InvalidRequestError, NotFoundError, QueueFullError, UnsupportedError
from ...settings import Settings
from ...tenants import FairMemory


class ResumableStreams:
    """The resumable streams of this process, in bounded memory."""

    def __init__(self, window: float, max_bytes: int) -> None:
        """`window`: seconds that a stream is kept without a reader; 0 turns resumable streams off."""
        self._window = window
        self._memory = FairMemory(max_bytes)
        # By owner and id, oldest first.
        self._streams: OrderedDict[tuple[str, str], ResumableStream] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> "ResumableStreams":
        """From the settings. Several API workers keep nothing, since they share connections but no memory."""
        return cls(settings.resume_window if settings.api_workers == 1 else 0.0, settings.max_stored_bytes)

    def start(
        self, owner: str, stream_id: str, events: AsyncGenerator[bytes, None], stop: Callable[[], None]
    ) -> "ResumableStream":
        """Run `events` and keep them. `stop` ends the work behind them, if any is left.

        Raises UnsupportedError if resumable streams are off, InvalidRequestError if the id is taken, QueueFullError if
        this owner has no room left.
        """
        if not self._window:
            raise UnsupportedError("resumable streams need a resume_window, and no more than one of api_workers")
        if (owner, stream_id) in self._streams:
            raise InvalidRequestError("another resumable stream has this X-Request-ID", "X-Request-ID")
        self._make_room()
        if owner in self._memory.debtors:
            raise QueueFullError("too much is kept for resumable streams; try again later")
        keep = partial(self._keep, owner)
        stream = self._streams[owner, stream_id] = ResumableStream(keep, self._forget_later)
        stream.run(events, stop)
        self._forget_later(stream)
        return stream

    def find(self, owner: str, stream_id: str) -> "ResumableStream":
        """Raises NotFoundError if it never existed, is another tenant's, or was forgotten."""
        if (owner, stream_id) not in self._streams:
            raise NotFoundError("there is no such stream any more", "stream_id")
        return self._streams[owner, stream_id]

    def _keep(self, owner: str, size: int) -> None:
        """Count `size` more bytes."""
        self._memory.add(owner, size)
        self._make_room()

    def _make_room(self) -> None:
        """If too much is kept, forget streams without a reader, oldest first, of the owners that have most."""
        for debtor in self._memory.debtors:
            for key, stream in list(self._streams.items()):
                if key[0] == debtor and not stream.is_being_read and debtor in self._memory.debtors:
                    self._forget(key)

    def _forget_later(self, stream: "ResumableStream") -> None:
        """The stream has no reader: forget it once the window has passed, unless there was one meanwhile."""
        readers = stream.num_readers

        def forget() -> None:
            for key, other in list(self._streams.items()):
                if other is stream and stream.num_readers == readers:
                    self._forget(key)

        asyncio.get_running_loop().call_later(self._window, forget)

    def _forget(self, key: tuple[str, str]) -> None:
        stream = self._streams.pop(key)
        self._memory.add(key[0], -stream.size)
        stream.end()


class Feed:
    """Events of work that goes on if their stream is forgotten."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._is_wanted = True

    def send(self, event: bytes) -> None:
        """Add an event."""
        if self._is_wanted:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """There are no more events."""
        self._queue.put_nowait(None)

    def drop(self) -> None:
        """Nobody reads them any more."""
        self._is_wanted = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        """All events, until they end."""
        while (event := await self._queue.get()) is not None:
            yield event


class ResumableStream:
    """The events of one stream, for one reader at a time."""

    def __init__(self, keep: Callable[[int], None], left: Callable[["ResumableStream"], None]) -> None:
        """`keep` is called with each event's size, `left` when the last reader is gone."""
        self._keep = keep
        self._left = left
        self._events: list[bytes] = []
        self._has_ended = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.size = 0
        self.is_being_read = False
        self.num_readers = 0
        """How many there were so far: a new reader takes over from the one before."""

    def run(self, events: AsyncGenerator[bytes, None], stop: Callable[[], None]) -> None:
        """Collect events from now on."""
        self._task = asyncio.create_task(self._collect(events, stop))

    async def _collect(self, events: AsyncGenerator[bytes, None], stop: Callable[[], None]) -> None:
        try:
            async with aclosing(events):
                async for data in events:
                    for event in data.split(b"\n\n")[:-1]:
                        self._add(event)
        finally:
            stop()
            self._has_ended = True
            self._news.set()

    def _add(self, event: bytes) -> None:
        if self._has_ended:  # the stream has just been forgotten
            return
        numbered = b"id: %d\n%s\n\n" % (len(self._events) + 1, event)
        self._events.append(numbered)
        self.size += len(numbered)
        self._news.set()
        self._keep(len(numbered))

    async def read(self, after: int = 0) -> AsyncGenerator[bytes, None]:
        """All events after number `after`, until the stream ends or another reader takes over."""
        self.num_readers += 1
        self.is_being_read = True
        reader = self.num_readers
        self._news.set()  # wakes the previous reader, which then sees that it was replaced
        try:
            while reader == self.num_readers:
                self._news.clear()
                for event in self._events[after:]:
                    yield event
                    after += 1
                if self._has_ended and after >= len(self._events):
                    return
                await self._news.wait()
        finally:
            if reader == self.num_readers:
                self.is_being_read = False
                self._left(self)

    def number(self, text: str, field: str) -> int:
        """The number of an event, as a client wrote it in `field`. Raises InvalidRequestError if there is none."""
        if not (text.isascii() and text.isdecimal() and int(text[:9]) <= self.num_events):
            raise InvalidRequestError(f"{field} is not the number of an event of this stream", field)
        return int(text[:9])

    @property
    def num_events(self) -> int:
        """How many there are so far."""
        return len(self._events)

    def end(self) -> None:
        """End the work if it still runs. Nothing more is kept."""
        self._has_ended = True
        if self._task is not None:
            self._task.cancel()
