"""The engine process: `python -m app.engine.process ADDRESS MODEL_FOLDER`, started by the supervisor.

It reads its settings as one line of JSON from stdin, and exits when stdin is closed: so it never outlives its parent.
It listens at a ZeroMQ address for API workers, and answers each of them by name.
"""

import logging
import os
import signal
import sys
import threading
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
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.errors import EXIT_STARTUP_ERROR, StartupError
from app.log import configure_logging
from app.settings import Settings

log = logging.getLogger(__name__)


class EngineServer:
    """Connects an EngineCore to its API workers."""

    def __init__(self, address: str) -> None:
        """Listen at a ZeroMQ address at once: commands wait in the socket until `run`."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
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
        parts = {worker: StepOutputs([], message.stats) for worker in self._workers}
        for output in message.outputs:
            worker = self._worker_of[output.request_id]
            if output.finish_reason is not None:
                del self._worker_of[output.request_id]
            parts[worker].outputs.append(output)
        for worker, part in parts.items():
            self._send(worker, part)

    def _send(self, worker: bytes, message: EngineMessage) -> None:
        self._socket.send_multipart((worker, self._encode(message)))


def main() -> None:
    """Load the model and serve until stdin is closed."""
    address, model_folder = sys.argv[1:]
    settings = Settings.model_validate_json(sys.stdin.readline())
    configure_logging(settings, process="engine")
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Signals may reach the whole group at once; what they mean for open requests is the parent's to decide.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    server = EngineServer(address)
    try:
        core, ready = build_engine(settings, Path(model_folder))
        server.run(core, ready)
    except StartupError as error:
        log.error("%s", error)
        server.announce_failure(str(error))
        sys.exit(EXIT_STARTUP_ERROR)


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
