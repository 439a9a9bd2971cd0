"""The API side's handle on an engine in another process."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from app.core.messages import (
    AbortCommand,
    EngineCommand,
    EngineMessage,
    EngineReady,
    EngineStats,
    HelloCommand,
    RequestCommand,
    RequestOutput,
    StepOutputs,
)
from app.core.request import FinishReason
from app.errors import EngineUnavailableError, QueueFullError

log = logging.getLogger(__name__)

_DIED = "the engine died"


class StatsListener(Protocol):
    """Whoever wants to know what the engine does."""

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
            _extend(self._pending, output)
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


def _extend(output: RequestOutput, next_one: RequestOutput) -> None:
    """Make two consecutive outputs of a request one, in place: a reader may miss thousands."""
    output.token_ids += next_one.token_ids
    output.logprobs += next_one.logprobs
    output.prompt_logprobs += next_one.prompt_logprobs
    output.timing = next_one.timing or output.timing
    output.finish_reason, output.error = next_one.finish_reason, next_one.error


class AsyncEngine:
    """An `app.core.engine_client.EngineClient` over ZeroMQ.

    The death of the engine is seen by its socket being closed, at once, whoever started it and however it died.
    """

    def __init__(self, address: str, max_queue: int, listener: StatsListener) -> None:
        self.ready: EngineReady | None = None
        self.failure: str | None = None
        self._max_queue = max_queue
        self._listener = listener
        self._streams: dict[str, RequestStream] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(EngineMessage).decode
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        context = zmq.asyncio.Context.instance()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, uuid.uuid4().bytes)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)

    async def start(self) -> None:
        """Greet the engine, which answers when it is ready, and listen to it from now on."""
        self._send(HelloCommand())
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)

    async def wait_until_ready(self) -> EngineReady:
        """Wait for the engine to load its model; EngineUnavailableError if it fails to."""
        while self.ready is None:
            if self.failure is not None:
                raise EngineUnavailableError(self.failure)
            await self._changed.wait()
            self._changed.clear()
        return self.ready

    async def close(self) -> None:
        """Stop listening; open requests end with an error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.fail("the server is shutting down")
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """Nobody would hear from the engine any more: rather an error than silence."""
        if not task.cancelled() and (error := task.exception()):
            log.error("the connection to the engine failed", exc_info=error)
            self.fail("the connection to the engine failed")

    # ------------------------------------------------------------------ requests

    def generate(self, command: RequestCommand) -> RequestStream:
        """See `EngineClient.generate`."""
        if self.failure is not None:
            raise EngineUnavailableError(f"the engine is not available: {self.failure}")
        if self.ready is None:
            raise EngineUnavailableError("the model is still loading")
        if len(self._streams) >= self.ready.max_num_seqs + self._max_queue:
            raise QueueFullError(f"{len(self._streams)} requests are open; try again later")
        stream = self._streams[command.request_id] = RequestStream()
        self._send(command)
        return stream

    def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        if self._streams.pop(request_id, None) is not None:
            self._send(AbortCommand([request_id]))

    def _send(self, command: EngineCommand) -> None:
        self._socket.send(self._encode(command), copy=True)

    # ------------------------------------------------------------------ the engine's messages

    async def _listen(self) -> None:
        while True:
            self._take(await self._socket.recv())
            # recv() does not yield while messages are there: let those who got news send them before more is taken in.
            await asyncio.sleep(0)

    def _take(self, payload: bytes) -> None:
        match self._decode(payload):
            case StepOutputs(outputs, stats):
                if stats is not None:
                    self._listener.record_step(stats)
                self._dispatch(outputs)
            case EngineReady() as ready:
                self.ready = ready
                self._changed.set()

    def _dispatch(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:  # aborted here, and finished there meanwhile
                continue
            if output.finish_reason is not None:
                del self._streams[output.request_id]
            stream.put(output)

    async def _watch(self) -> None:
        """Wait for the engine's socket to be closed: then it has died."""
        await recv_monitor_message(self._monitor)
        log.error(_DIED)
        self.fail(_DIED)

    def fail(self, error: str) -> None:
        """The engine is gone: every open request ends with an error."""
        if self.failure is None:
            self.failure = error
        self.ready = None
        self._changed.set()
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            stream.put(
                RequestOutput(request_id=request_id, token_ids=[], finish_reason=FinishReason.ERROR, error=self.failure)
            )
