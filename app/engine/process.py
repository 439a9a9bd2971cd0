"""The engine process: `python -m app.engine.process`, started by the supervisor.

It reads its settings as one line of JSON from stdin, and exits when stdin is closed: so it never outlives its parent.
It listens on a Unix socket for API workers, and answers each of them by name.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec
import zmq

from app.core.messages import (
    AbortCommand,
    EngineCommand,
    EngineFailed,
    EngineMessage,
    EngineReady,
    GenerateCommand,
    HelloCommand,
    StepOutputs,
)
from app.engine.block_pool import BlockPool
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.scheduler import Scheduler
from app.errors import StartupError
from app.log import configure_logging
from app.settings import Settings, load_settings

log = logging.getLogger(__name__)

EXIT_STARTUP_ERROR = 2


class EngineServer:
    """Connects an EngineCore to its API workers."""

    def __init__(self, address: str) -> None:
        """Listen at a ZeroMQ address at once: commands wait in the socket until `run`."""
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # never drop a token: what a slow reader may hold is bounded there
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(address)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(EngineCommand).decode
        self._worker_of: dict[str, bytes] = {}
        self._workers: set[bytes] = set()

    def run(self, core: EngineCore, ready: EngineReady) -> None:
        """Serve until the process ends."""
        while True:
            self._receive(core, ready, wait=not core.has_work)
            if core.has_work:
                self._publish(core.step())

    def announce_failure(self, error: str) -> None:
        """Tell all API workers that this engine ends."""
        for worker in self._workers:
            self._send(worker, EngineFailed(error))
        self._socket.close()

    def _receive(self, core: EngineCore, ready: EngineReady, wait: bool) -> None:
        """Take in all commands that have arrived; wait for the first if there is nothing else to do."""
        if wait:
            self._socket.poll()
        while self._socket.poll(0):
            worker, payload = self._socket.recv_multipart()
            match self._decode(payload):
                case HelloCommand():
                    self._workers.add(worker)
                    self._send(worker, ready)
                case GenerateCommand() as command:
                    self._worker_of[command.request_id] = worker
                    core.add(command)
                case AbortCommand(request_ids):
                    core.abort(request_ids)

    def _publish(self, message: StepOutputs) -> None:
        """Send each API worker the outputs of its requests; the statistics go to all."""
        parts: dict[bytes, StepOutputs] = {}
        if message.stats:
            parts = {worker: StepOutputs([], message.stats) for worker in self._workers}
        for output in message.outputs:
            worker = self._worker_of[output.request_id]
            if output.finish_reason is not None:
                del self._worker_of[output.request_id]
            parts.setdefault(worker, StepOutputs([])).outputs.append(output)
        for worker, part in parts.items():
            self._send(worker, part)

    def _send(self, worker: bytes, message: EngineMessage) -> None:
        self._socket.send_multipart((worker, self._encode(message)))


def build_engine(settings: Settings, model_path: Path) -> tuple[EngineCore, EngineReady]:
    """Load the model and put an engine around it. Raises StartupError."""
    started = time.monotonic()
    # Importing torch takes a second or more: it is a phase of its own, and the echo worker does without.
    if settings.worker == "echo":
        from app.worker.echo_factory import build_echo_worker as build
    else:
        from app.worker.factory import build_worker as build
    import_seconds = time.monotonic() - started
    built = build(settings, model_path)
    limits = built.limits
    scheduler = Scheduler(
        BlockPool(built.num_blocks),
        ChunkPacer(limits.max_itl, settings.block_size, limits.max_num_batched_tokens),
        block_size=settings.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        prefix_caching=settings.prefix_caching,
    )
    ready = EngineReady(
        pid=os.getpid(),
        architecture=built.architecture,
        model_impl=built.model_impl,
        device=built.device,
        dtype=built.dtype,
        vocab_size=built.vocab_size,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        block_size=settings.block_size,
        num_kv_blocks=built.num_blocks,
        startup_seconds={"import": import_seconds, **built.startup_seconds},
    )
    return EngineCore(scheduler, built.worker, settings.overlap), ready
