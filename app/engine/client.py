"""The API side's handle on an engine in another process."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from ..core.heartbeat import EngineHeartbeat
from ..core.request import FinishReason
from ..core.step_report import StepReport
from ..core.wire import (
    MAX_UNREAD_MESSAGES,
    AbortCommand,
    AdapterOutcome,
    AdaptersChanged,
    DropMediaCommand,
    EngineCommand,
    EngineMessage,
    EngineReady,
    EngineStats,
    GenerateCommand,
    HelloCommand,
    KeepMediaCommand,
    LoadAdapterCommand,
    Progress,
    RequestCommand,
    RequestOutput,
    StepOutputs,
    StepReported,
    UnloadAdapterCommand,
    WatchCommand,
)
from ..errors import EngineUnavailableError, InvalidRequestError, QueueFullError
from .backlog import Backlog
from .media import SentMedia, bare
from .watching import Watching

log = logging.getLogger(__name__)

_SUSPICIOUS_DEATHS = 2
"""After so many deaths of engines in a row that ran a request and gave it nothing, the next engine runs it alone."""
_FATAL_DEATHS = 3
"""After so many deaths of engines in a row that ran a request alone, the request ends with an error."""


class StatsListener(Protocol):
    """Receives the statistics of the engine's steps."""

    def record_step(self, stats: EngineStats) -> None:
        """Called once for each step."""
        ...


class RequestStream(AsyncIterator[RequestOutput]):
    """The outputs of one request. Holds at most one: what comes while the reader is busy is merged into it."""

    def __init__(self) -> None:
        self._pending: RequestOutput | None = None
        self._finished = False
        self._wake: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """Hand an output to the reader, now or when it comes back."""
        if self._pending is None:
            self._pending = output
        else:
            self._pending.extend(output)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def __anext__(self) -> RequestOutput:
        if self._finished:
            raise StopAsyncIteration
        if self._pending is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
            self._wake = None
        output, self._pending = self._pending, None
        assert output is not None
        self._finished = output.finish_reason is not None
        return output


@dataclass(slots=True)
class _OpenRequest:
    """A request that has not ended, and what the next engine would have to know of it."""

    command: RequestCommand
    progress: Progress
    is_probe: bool
    stream: RequestStream = field(default_factory=RequestStream)
    deaths: int = 0
    """Deaths of engines that ran it beside others, since its last output."""
    deaths_alone: int = 0
    """Deaths of engines that ran it alone, since its last output."""

    def take(self, output: RequestOutput) -> None:
        """Note an output, and hand it to the reader."""
        progress = self.progress
        progress.token_ids += output.token_ids
        progress.num_prompt_logprobs += len(output.prompt_logprobs)
        progress.num_cached_tokens = output.num_cached_tokens
        progress.timing = progress.timing or output.timing
        self.deaths = self.deaths_alone = 0
        self.stream.put(output)

    def survives(self, suspect: str) -> bool:
        """Note that its engine has died while it ran `suspect` alone; returns whether the next engine may run it."""
        if not suspect:
            self.deaths += 1
        elif suspect == self.command.request_id:
            self.deaths_alone += 1
        return self.deaths_alone < _FATAL_DEATHS and (self.is_generation or self.deaths < _FATAL_DEATHS)

    @property
    def is_generation(self) -> bool:
        """Requests to encoders are never resumed as suspects: they are done in one step."""
        return isinstance(self.command, GenerateCommand)

    def command_for_the_next_engine(self) -> RequestCommand:
        """The command that goes on where the output so far ends."""
        if isinstance(self.command, GenerateCommand):
            self.progress.is_suspect = self.deaths >= _SUSPICIOUS_DEATHS
            self.command.progress = self.progress
        return self.command


class AsyncEngine:
    """An `app.core.engine_client.EngineClient` over ZeroMQ.

    The death of the engine is seen by its socket being closed, at once, however it died. Open requests wait for the
    next engine at the same address, which goes on with them where the last one ended: tokens are chosen by seed and
    position alone, so that the text is the one that it would have been.
    """

    def __init__(
        self, address: str, name: str, max_queue: int, listener: StatsListener, max_queue_tokens: int | None = None
    ) -> None:
        """`name` is this worker's among all of the service: whoever takes it over later aborts what this one left."""
        self.ready: EngineReady | None = None
        self.failure: str | None = None
        self.heartbeat = EngineHeartbeat(address)
        self._address = address
        self._name = name
        self._max_queue = max_queue
        self._max_queue_tokens = max_queue_tokens
        self._backlog = Backlog()
        self._listener = listener
        self._adapters: dict[str, str] = {}
        """The engine's."""
        self._coming_back: dict[str, str] = {}
        """Those of the last engine that this one is still loading."""
        self._has_had_engine = False
        self.sleeps: Callable[[], bool] = lambda: False
        """Whether the engine has ended because nobody wanted its model."""
        self._asked: dict[str, asyncio.Future[None]] = {}
        """By name of an adapter that is being loaded or unloaded for a caller here."""
        self._open: dict[str, _OpenRequest] = {}
        self._media = SentMedia()
        """To the engine that there is."""
        self._watching = Watching(self._ask_for_reports)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(EngineMessage).decode
        self._changed = asyncio.Condition()
        self._connection: asyncio.Task[None] | None = None
        self._socket: zmq.asyncio.Socket | None = None

    async def start(self) -> None:
        """Connect to the engine, whenever there is one, from now on."""
        self._connection = asyncio.create_task(self._stay_connected())

    async def wait_until_ready(self) -> EngineReady:
        """Wait for the engine to load its model; EngineUnavailableError if there will be none."""
        await self._wait_for(lambda: self.ready is not None)
        assert self.ready is not None
        return self.ready

    async def wait_until_lost(self) -> None:
        """Wait for the engine to die; EngineUnavailableError if no other will come."""
        await self._wait_for(lambda: self.ready is None)

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self.failure is not None)
        if self.failure is not None:
            raise EngineUnavailableError(self.failure)

    async def close(self, reason: str = "the server is shutting down") -> None:
        """See `EngineClient.close`."""
        if self._connection is not None:
            self._connection.cancel()
            await asyncio.gather(self._connection, return_exceptions=True)
        await self._watching.close()
        await self._fail(reason)

    # ------------------------------------------------------------------ requests

    @property
    def has_requests(self) -> bool:
        """See `EngineClient.has_requests`."""
        return any(not request.is_probe for request in self._open.values())

    @property
    def is_full(self) -> bool:
        """Whether no more requests are taken now."""
        if self._max_queue_tokens is not None and self._backlog.num_tokens >= self._max_queue_tokens:
            return True
        return self.ready is not None and len(self._open) >= self.ready.max_num_seqs + self._max_queue

    @property
    def retry_after(self) -> int:
        """See `EngineClient.retry_after`."""
        return self._backlog.retry_after

    def num_waiting(self, tenant: str) -> int:
        """See `EngineClient.num_waiting`."""
        return self._backlog.by_tenant[tenant]

    def num_waiting_tokens(self, tenant: str) -> int:
        """See `EngineClient.num_waiting_tokens`."""
        return self._backlog.tokens_by_tenant[tenant]

    def check_room(self) -> None:
        """See `EngineClient.check_room`."""
        if self.is_full:
            error = QueueFullError(f"{len(self._open)} requests are open; try again later")
            error.retry_after = self.retry_after
            raise error

    def generate(self, command: RequestCommand, is_probe: bool = False) -> RequestStream:
        """See `EngineClient.generate`."""
        if self.failure is not None:
            raise EngineUnavailableError(f"the engine is not available: {self.failure}")
        progress = command.progress if isinstance(command, GenerateCommand) else None
        if progress is None:
            if self.ready is None:
                raise EngineUnavailableError("the model is still loading")
            self.check_room()
            self._backlog.enter(command)
            if isinstance(command, GenerateCommand):
                command.adapter_folder = self.adapters.get(command.adapter, "")
        request = self._open[command.request_id] = _OpenRequest(command, progress or Progress(), is_probe)
        if self.ready is not None:
            self._submit(command)
        return request.stream

    def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        self._backlog.leave(request_id, was_served=False)
        if self._open.pop(request_id, None) is not None and self.ready is not None:
            self._send(AbortCommand([request_id]))
            self._drop_media(request_id)

    def expire(self, request_id: str) -> None:
        """See `EngineClient.expire`."""
        request = self._open.get(request_id)
        if request is not None:
            self.abort(request_id)
            request.stream.put(RequestOutput(request_id=request_id, token_ids=[], finish_reason=FinishReason.TIMEOUT))

    def step_reports(self) -> AsyncGenerator[StepReport, None]:
        """See `EngineClient.step_reports`."""
        return self._watching.reports()

    def _ask_for_reports(self) -> None:
        if self.ready is not None:
            self._send(WatchCommand())

    # ------------------------------------------------------------------ adapters

    @property
    def adapters(self) -> dict[str, str]:
        """See `EngineClient.adapters`. Requests of those that are coming back wait in the engine."""
        return self._adapters | self._coming_back

    async def load_adapter(self, name: str, folder: str) -> None:
        """See `EngineClient.load_adapter`."""
        await self._ask(name, LoadAdapterCommand(name, folder))

    async def unload_adapter(self, name: str) -> None:
        """See `EngineClient.unload_adapter`."""
        await self._ask(name, UnloadAdapterCommand(name))

    async def _ask(self, name: str, command: EngineCommand) -> None:
        if self.ready is None:
            raise EngineUnavailableError(self.failure or "the model is still loading")
        if name in self._asked:
            raise InvalidRequestError(f"{name} is just being loaded or unloaded", "lora_name")
        self._asked[name] = outcome = asyncio.get_running_loop().create_future()
        try:
            self._send(command)
            await outcome
        finally:
            del self._asked[name]

    def _answer(self, name: str, error: Exception | None) -> None:
        outcome = self._asked.get(name)
        if outcome is None or outcome.done():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    def _bring_back_adapters(self, ready: EngineReady) -> None:
        """Have an engine that took over load what the last one had loaded; the first one says what there is.

        What has been loaded there meanwhile was asked for through another API worker, and stays.
        """
        wanted = self.adapters if self._has_had_engine else ready.adapters
        self._adapters, self._has_had_engine = ready.adapters, True
        self._coming_back = {name: folder for name, folder in wanted.items() if name not in ready.adapters}
        for name in set(ready.adapters_of_start) - wanted.keys():
            self._send(UnloadAdapterCommand(name))
        for name, folder in self._coming_back.items():
            self._send(LoadAdapterCommand(name, folder))

    # ------------------------------------------------------------------ messages

    def _submit(self, command: RequestCommand) -> None:
        if media := self._media.add(command):
            self._send(KeepMediaCommand(media))
        self._send(bare(command))

    def _drop_media(self, request_id: str) -> None:
        """Tell the engine what it need not keep, now that a request has ended."""
        if digests := self._media.remove(request_id):
            self._send(DropMediaCommand(digests))

    def _send(self, command: EngineCommand) -> None:
        assert self._socket is not None
        self._socket.send(self._encode(command), copy=True)

    # ------------------------------------------------------------------ one engine after the other

    async def _stay_connected(self) -> None:
        try:
            while True:
                if await self._connect_once():
                    await self._on_death()
        except Exception:  # no output would ever arrive again: an error is better than silence
            log.exception("the connection to the engine failed")
            await self._fail("the connection to the engine failed")

    async def _connect_once(self) -> bool:
        """Connect, greet the engine, which answers when it is ready, and listen to it until it dies.

        Returns whether it ever was ready: one that is just dying may still let us in.
        """
        # Each engine gets a new socket, so that messages meant for the last one do not reach it.
        self._socket = socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, MAX_UNREAD_MESSAGES), (zmq.LINGER, 0)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IDENTITY, self._name.encode())
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self._address)
        self._send(HelloCommand())
        tasks = [asyncio.create_task(self._listen(socket)), asyncio.ensure_future(recv_monitor_message(monitor))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return self.ready is not None
        finally:
            self.ready = None
            self._media.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            socket.disable_monitor()
            monitor.close()
            socket.close()

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._take(await socket.recv())
            # recv() does not yield while messages are there: let the readers send their output first.
            await asyncio.sleep(0)

    async def _take(self, payload: bytes) -> None:
        match self._decode(payload):
            case StepOutputs(outputs, stats):
                if stats is not None:
                    self._listener.record_step(stats)
                self._dispatch(outputs)
            case StepReported(report):
                await self._watching.take(report)
            case EngineReady() as ready:
                await self._on_ready(ready)
            case AdaptersChanged(adapters):
                self._adapters = adapters
            case AdapterOutcome(name, error):
                if self._coming_back.pop(name, None) and error:
                    log.error("the adapter %s could not be loaded again: %s", name, error)
                self._answer(name, InvalidRequestError(error, "lora_path") if error else None)

    def _dispatch(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            request = self._open.get(output.request_id)
            if request is None:  # aborted here, and finished there meanwhile
                continue
            if output.finish_reason is not None:
                del self._open[output.request_id]
                self._drop_media(output.request_id)
            self._backlog.leave(output.request_id, was_served=True)
            request.take(output)

    async def _on_ready(self, ready: EngineReady) -> None:
        """Take the engine into use: what is open is what the last one left.

        A request that the last one ran alone goes first: if it is not to blame, that shows before all else.
        """
        self.ready = ready
        self._bring_back_adapters(ready)
        self._record_that_nothing_runs()
        for request in sorted(self._open.values(), key=lambda request: request.deaths_alone, reverse=True):
            self._submit(request.command_for_the_next_engine())
        await self._notify()

    async def _on_death(self) -> None:
        """Keep open requests for the next engine, except a request that engines die of."""
        suspect = self.heartbeat.suspect
        for request_id, request in list(self._open.items()):
            if not request.survives(suspect):
                self._end(request_id, f"the engine died {_FATAL_DEATHS} times in a row while it ran this request")
        for name in self._asked:
            self._answer(name, EngineUnavailableError("the engine has died; try again"))
        if self._open or not self.sleeps():
            log.warning("the engine has died; %d open requests wait for the next one", len(self._open))
        self._record_that_nothing_runs()
        await self._notify()

    def _record_that_nothing_runs(self) -> None:
        """Reset the gauges: a dead engine cannot, and the next one reports nothing until it has work."""
        self._listener.record_step(EngineStats(num_running=0, num_waiting=len(self._open)))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _fail(self, error: str) -> None:
        """End every open request with an error, because no other engine will come."""
        self.failure = self.failure or error
        self.end_all(self.failure)
        for name in self._asked:
            self._answer(name, EngineUnavailableError(self.failure))
        await self._notify()

    def end_all(self, error: str) -> None:
        """See `EngineClient.end_all`."""
        for request_id in list(self._open):
            self._end(request_id, error)

    def _end(self, request_id: str, error: str) -> None:
        self._backlog.leave(request_id, was_served=False)
        output = RequestOutput(request_id=request_id, token_ids=[], finish_reason=FinishReason.ERROR, error=error)
        self._open.pop(request_id).stream.put(output)
        self._drop_media(request_id)
