"""`paceline serve`: the parent of all processes of the service.

The supervisor itself is light: no torch, no event loop. It starts the engine first, because loading the model takes
longest. API workers start at the same time, and report "loading" until the engine is ready.
"""

import logging
import os
import queue
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

from ..checkpoint.source import find_model
from ..core.heartbeat import Heartbeat
from ..errors import EXIT_STARTUP_ERROR, StartupError
from ..log import configure_logging
from ..settings import Settings
from ..tenants import read_tenants
from .child import Child, ChildLostError, start_module, stop
from .engine import EngineProcess
from .models import ModelProcesses
from .watchdog import Watchdog

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5
"""Time between two checks whether a child hangs. The end of a child is noticed at once."""
_LAST_WORDS_SECONDS = 5
"""Time for API workers to end after the drain; they send open streams a last event."""
_USEFUL_SECONDS = 10
"""An API worker that lived for less than this was of no use."""


def listen(settings: Settings) -> socket.socket:
    """Bind the server's socket. Raises StartupError if the address is not available.

    The first API worker calls listen() on it, because until then nobody would answer a connection.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise StartupError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    return sock


def serve(settings: Settings) -> int:
    """Run the service until a signal arrives or a child is lost. Returns the exit code.

    Raises StartupError if the model does not exist, the port is taken, or the API keys cannot be read.
    """
    configure_logging(settings, process="supervisor")
    started_at = time.time()
    # Errors in the keys, which only API workers use, or in the port are reported before anything slow begins.
    if settings.api_keys is not None:
        read_tenants(settings.api_keys)
    sock = listen(settings)
    _end_at_once_by_signal()
    folders = {
        name: find_model(own.model, needs_weights=own.load_format != "dummy")
        for name, own in ({name: settings.of_model(name) for name in settings.models} or {"": settings}).items()
    }
    folder = next(iter(folders.values()))
    signals = _signals(reads_keys=settings.api_keys is not None)
    engine = ModelProcesses(settings, folders) if settings.models else EngineProcess(settings, folder)
    workers = [ApiWorker(settings, engine, folder, sock, started_at, index) for index in range(settings.api_workers)]
    try:
        _watch(engine, workers, signals)
        return _drain(engine, workers, signals, settings.drain_timeout)
    except ChildLostError as error:
        lost = error
    finally:
        sock.close()
        for worker in workers:
            worker.end_if_starting()
        stop(*(worker.child for worker in workers))
        engine.stop()
    log.error("%s", lost)  # the last line, below whatever the others had to say
    return lost.exit_code


Engines = EngineProcess | ModelProcesses


class ApiWorker:
    """A process that accepts connections on the service's socket. Several of them share their metrics."""

    def __init__(
        self,
        settings: Settings,
        engine: Engines,
        folder: Path,
        sock: socket.socket,
        started_at: float,
        index: int,
    ) -> None:
        environment = {}
        if settings.api_workers > 1:
            from ..metrics import SHARED_FOLDER  # with a library that the supervisor has no other use for

            shared = Path(engine.folder, "metrics")
            shared.mkdir(exist_ok=True)
            environment[SHARED_FOLDER] = str(shared)
        models = engine.arguments if isinstance(engine, ModelProcesses) else []
        arguments = (engine.address, str(folder.absolute()), str(sock.fileno()), str(started_at), str(index), *models)
        self._launch = partial(start_module, "api.process", settings, *arguments, fds=(sock.fileno(),), **environment)
        self._began = 0.0
        self._heartbeat = Heartbeat(engine.address, f"api-{index}")
        self.child = Child(f"API worker {index}", self._start, settings.max_restarts, engine.folder)
        self._watchdog = Watchdog(self.child, self._heartbeat, settings.step_timeout)

    def _start(self) -> subprocess.Popen[bytes]:
        self._began = time.monotonic()
        self._heartbeat.reset()
        return self._launch()

    def check(self) -> None:
        """Restart the API worker if it has died, and end it if it hangs. Raises ChildLostError if it keeps dying."""
        self._watchdog.check()
        if self.child.exit_code == EXIT_STARTUP_ERROR:
            raise ChildLostError(self.child.reason or self.child.how_it_ended, EXIT_STARTUP_ERROR)
        self.child.restart_if_dead(was_useful=time.monotonic() - self._began > _USEFUL_SECONDS)

    def end_if_starting(self) -> None:
        """End an API worker that serves nobody yet, and would only see later that it is to end."""
        if not self._heartbeat.has_begun:
            self.child.signal(signal.SIGKILL)


def _watch(engine: Engines, workers: list[ApiWorker], signals: "queue.SimpleQueue[int]") -> None:
    """Check on the children until a signal says to stop. Raises ChildLostError."""
    while not _stop_is_wanted(signals, workers):
        engine.check()
        for worker in workers:
            worker.check()


def _drain(engine: Engines, workers: list[ApiWorker], signals: "queue.SimpleQueue[int]", timeout: float) -> int:
    """Let API workers finish open requests, until all are finished, the time is up, or a second signal arrives.

    Returns the exit code: 0 unless open requests had to be cut off.
    """
    for worker in workers:
        worker.child.signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout + _LAST_WORDS_SECONDS
    while not all(worker.child.has_ended for worker in workers):
        if _stop_is_wanted(signals, workers) or time.monotonic() > deadline:
            return 1
        engine.check()  # open streams survive the engine's death during the drain, too
    return 0


def _stop_is_wanted(signals: "queue.SimpleQueue[int]", workers: list[ApiWorker]) -> bool:
    """Wait for signals for a moment, and forward SIGHUP, by which API workers read the keys again.

    A signal to stop counts more than the end of a child, because the same signal may have ended the child.
    """
    arrived: list[int] = []
    try:
        arrived.append(signals.get(timeout=_CHECK_SECONDS))
        while True:
            arrived.append(signals.get_nowait())
    except queue.Empty:
        pass
    if signal.SIGHUP in arrived:
        for worker in workers:
            worker.child.signal(signal.SIGHUP)
    return any(number in (signal.SIGTERM, signal.SIGINT) for number in arrived)


def _end_at_once_by_signal() -> None:
    """For now, let a signal to stop end this process as it is: there are no requests to drain and no children to stop.

    A download or conversion that is interrupted begins again at the next start. The converter ends as children do.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))


def _signals(reads_keys: bool) -> "queue.SimpleQueue[int]":
    """A queue that receives the supervisor's signals from now on: stop, read the keys again, a child has ended.

    A handler may interrupt this process anywhere, even inside another handler. SimpleQueue is the only queue that is
    safe to use there.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD]
    if reads_keys:  # otherwise SIGHUP ends the service, because its terminal was closed
        wanted.append(signal.SIGHUP)
    for number in wanted:
        signal.signal(number, lambda number, _frame: arrived.put(number))
    return arrived
