"""The engine process: `python -m app.engine.server ADDRESS MODEL_FOLDER MODEL`, started by the supervisor.

MODEL is the name of one of several models, or empty.

It takes its settings from stdin, and exits when stdin is closed: so it never outlives its parent (`app.core.parent`).
Once the model is loaded it listens at a ZeroMQ address for API workers, and answers each of them by name. That there
is a socket tells the parent that this engine has started.
"""

import faulthandler
import gc
import logging
import math
import os
import signal
import sys
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec
import zmq

from ..core.heartbeat import EngineHeartbeat
from ..core.parent import give_up, read_settings, remove_if_orphan, when_parent_ends
from ..core.wire import (
    MAX_UNREAD_MESSAGES,
    AbortCommand,
    AdapterOutcome,
    AdaptersChanged,
    DropMediaCommand,
    EngineCommand,
    EngineMessage,
    EngineReady,
    GenerateCommand,
    HelloCommand,
    KeepMediaCommand,
    LoadAdapterCommand,
    PredictCommand,
    StepOutputs,
    UnloadAdapterCommand,
    WatchCommand,
)
from ..errors import StartupError
from ..log import configure_logging
from .build import build_engine
from .core import EngineCore
from .media import ReceivedMedia
from .outbox import Outbox
from .reporter import Reporter

log = logging.getLogger(__spec__.name)  # since this runs as __main__

_RETRY_MS = 2
"""Interval at which compiling grammars, slow API workers and the step in flight are polled, in milliseconds."""
_LOOKS = 8
"""The step in flight is polled again after this fraction (one eighth) of its remaining time."""
_BEATS = 10
"""Heartbeats of an idle engine within the time after which it would count as hung."""


class EngineServer:
    """Connects an EngineCore to its API workers."""

    def __init__(self, address: str, step_timeout: float) -> None:
        """Listen at a ZeroMQ address; commands wait in the socket until `run`.

        `step_timeout`: after how many seconds without a sign of life it counts as hung.
        """
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNREAD_MESSAGES)
        self._socket.setsockopt(
            zmq.ROUTER_MANDATORY, 1
        )  # raise an error for a message that cannot be sent, instead of dropping it
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # an API worker that was restarted takes over its name
        self._socket.bind(address)
        os.chmod(address.removeprefix("ipc://"), 0o600)  # its folder is private, too
        self._idle_ms = math.ceil(step_timeout / _BEATS * 1000)
        self._heartbeat = EngineHeartbeat(address)
        self._heartbeat.begin()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(EngineCommand).decode
        self._outboxes: dict[bytes, Outbox] = {}
        """By name of the API worker."""
        self._outbox_of: dict[str, Outbox] = {}
        """By open request."""
        self._media = ReceivedMedia()
        self._loads: list[tuple[bytes, str, Future[None]]] = []
        """API worker, name of the adapter, and what comes of it, of all that were not answered yet."""
        self._told: dict[bytes, dict[str, str]] = {}
        """The adapters that each API worker knows of."""
        self._adapters_of_start: set[str] = set()
        """Names of those that were loaded before `run`, and not unloaded since."""

    def run(self, core: EngineCore, ready: EngineReady) -> None:
        """Serve until the process ends."""
        self._adapters_of_start = set(core.adapters.folders)
        reporter = Reporter(core)
        while True:
            waits = [
                core.admit_prepared(),
                not self._report(reporter),
                not self._flush(),
                not self._tell_of_adapters(core),
            ]
            if not core.has_work:
                self._heartbeat.rest()
                self._socket.poll(_RETRY_MS if any(waits) else self._idle_ms)
            elif spare := core.spare_seconds:
                spare_ms = int(spare * 1000)  # the step may end sooner than expected
                self._socket.poll(min(spare_ms, max(_RETRY_MS, spare_ms // _LOOKS)))
            self._receive(core, ready, reporter)
            if core.has_work and not core.spare_seconds:
                self._heartbeat.begin_step(core.suspect)
                message = core.step()
                if message.stats and message.stats.step_tokens:
                    self._heartbeat.end_step()
                reporter.take_outputs(message)
                self._publish(message)

    def _receive(self, core: EngineCore, ready: EngineReady, reporter: Reporter) -> None:
        """Take in all commands that have arrived."""
        while self._socket.poll(0):
            worker, payload = self._socket.recv_multipart()
            match self._decode(payload):
                case HelloCommand():
                    self._greet(worker, core)
                    self._media.drop_all(worker)
                    self._told[worker] = core.adapters.folders
                    own = {"adapters": self._told[worker], "adapters_of_start": sorted(self._adapters_of_start)}
                    self._send(worker, msgspec.structs.replace(ready, **own))
                case KeepMediaCommand(media):
                    self._media.keep(worker, media)
                case DropMediaCommand(digests):
                    self._media.drop(worker, digests)
                case GenerateCommand() as command:
                    self._outbox_of[command.request_id] = self._outboxes[worker]
                    core.add(self._media.filled(worker, command))
                case PredictCommand() as command:
                    self._outbox_of[command.request_id] = self._outboxes[worker]
                    core.add(command)
                case AbortCommand(request_ids):
                    core.abort(request_ids)
                case WatchCommand():
                    reporter.watch(worker)
                case LoadAdapterCommand(name, folder):
                    self._loads.append((worker, name, core.load_adapter(name, folder)))
                case UnloadAdapterCommand(name):
                    core.adapters.unload(name)
                    self._adapters_of_start.discard(name)
                    done: Future[None] = Future()
                    done.set_result(None)
                    self._loads.append((worker, name, done))

    def _greet(self, worker: bytes, core: EngineCore) -> None:
        """Take in a new API worker: the clients of an earlier one of its name are gone."""
        earlier = self._outboxes.get(worker)
        orphans = [request_id for request_id, outbox in self._outbox_of.items() if outbox is earlier]
        for request_id in orphans:
            del self._outbox_of[request_id]
        core.abort(orphans)
        self._outboxes[worker] = Outbox(partial(self._send, worker))

    def _publish(self, message: StepOutputs) -> None:
        """Send each API worker the outputs of its requests, and the first one the statistics as well."""
        next(iter(self._outboxes.values())).put_stats(message.stats)
        for output in message.outputs:
            outbox = self._outbox_of.get(output.request_id)
            if outbox is None:  # the API worker that sent the request is gone
                continue
            if output.finish_reason is not None:
                del self._outbox_of[output.request_id]
            outbox.put(output)
        self._flush()

    def _tell_of_adapters(self, core: EngineCore) -> bool:
        """Tell API workers of changes, then who asked of the outcome; returns whether nothing is left to tell."""
        folders = core.adapters.folders
        for worker, told in self._told.items():
            if told != folders and self._send(worker, AdaptersChanged(folders)):
                self._told[worker] = folders
        self._loads = [load for load in self._loads if not self._tell_outcome(*load)]
        return not self._loads and all(told == folders for told in self._told.values())

    def _tell_outcome(self, worker: bytes, name: str, loading: "Future[None]") -> bool:
        """Returns whether it has come, and was told."""
        if not loading.done():
            return False
        error = loading.exception()
        said = "" if error is None else str(error) or type(error).__name__
        return self._send(worker, AdapterOutcome(name, said))

    def _report(self, reporter: Reporter) -> bool:
        """Have those told who watch what steps look like; returns whether there is no later news."""
        if made := reporter.report():
            workers, report = made
            for worker in workers:
                self._outboxes[worker].put_report(report)
        return not reporter.is_pending

    def _flush(self) -> bool:
        """Send what is pending; returns whether all API workers have taken theirs."""
        has_told = [outbox.flush() for outbox in self._outboxes.values()]
        return all(has_told)

    def _send(self, worker: bytes, message: EngineMessage) -> bool:
        """Send a message without waiting; False if the worker is behind. What is sent to a dead worker is lost."""
        try:
            self._socket.send(worker, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return True
        self._socket.send(self._encode(message))
        return True


def _end(address: str) -> None:
    """End the process because its parent is gone, even if the engine hangs."""
    remove_if_orphan(address)
    os._exit(0)


def main() -> None:
    """Load the model and serve until stdin is closed."""
    address, model_folder, model = sys.argv[1:]
    settings = read_settings(address)
    configure_logging(settings, process=f"engine {model}".strip())
    when_parent_ends(partial(_end, address))
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor wants to know where a step hangs
    # Signals may reach the whole group at once; what they mean for open requests is the parent's to decide.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        core, ready = build_engine(settings, Path(model_folder))
        server = EngineServer(address, settings.step_timeout)
    except StartupError as error:
        give_up(address, str(error))
    except Exception as error:
        log.exception("an unexpected error")
        give_up(address, f"the engine cannot start: {type(error).__name__}, see above")
    gc.collect()
    gc.freeze()  # a later collection need not walk through the libraries: that would be a pause in every stream
    server.run(core, ready)


if __name__ == "__main__":
    main()
