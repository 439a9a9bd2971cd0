"""`paceline serve`: the parent of all processes of the service.

It is light itself: no torch, no event loop. It starts the engine first, since loading the model takes longest; API
workers start beside it, and say "loading" until the engine is ready.
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

from app.checkpoint.source import find_model
from app.core.heartbeat import Heartbeat
from app.errors import EXIT_STARTUP_ERROR, StartupError
from app.log import configure_logging
from app.metrics import SHARED_FOLDER
from app.settings import Settings
from app.supervisor.child import Child, ChildLostError, start_module, stop
from app.supervisor.engine import EngineProcess
from app.supervisor.watchdog import Watchdog
from app.tenants import read_tenants

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
"""How often to look whether a child hangs; the end of a child is seen at once."""
_LAST_WORDS_SECONDS = 5
"""What API workers get to end after the drain, in which they tell streams that are still open."""
_USEFUL_SECONDS = 10
"""An API worker that lived for less did not get anywhere."""


def listen(settings: Settings) -> socket.socket:
    """The server's socket; StartupError if the address is not to be had.

    The first API worker listens on it: before, nobody would answer those who connect.
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
    """Run the service until a signal comes or a child is lost; returns the exit code.

    Raises StartupError if there is no such model, the port is taken, or the API keys cannot be read.
    """
    configure_logging(settings, process="supervisor")
    started_at = time.time()
    # Before anything slow: what is wrong with the keys, which only API workers use, or with the port shows at once.
    if settings.api_keys is not None:
        read_tenants(settings.api_keys)
    sock = listen(settings)
    _end_at_once_by_signal()
    folder = find_model(settings.model, needs_weights=settings.load_format != "dummy")
    signals = _signals(reads_keys=settings.api_keys is not None)
    engine = EngineProcess(settings, folder)
    workers = [ApiWorker(settings, engine, folder, sock, started_at, index) for index in range(settings.api_workers)]
    try:
        _watch(engine, workers, signals)
        return _drain(engine, workers, signals, settings.drain_timeout)
    except ChildLostError as error:
        if str(error):  # else it has said why itself
            log.error("%s", error)
        return error.exit_code
    finally:
        sock.close()
        stop(*(worker.child for worker in workers))
        engine.stop()


class ApiWorker:
    """A process that accepts from the service's socket; all of them count together if they are several."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineProcess,
        folder: Path,
        sock: socket.socket,
        started_at: float,
        index: int,
    ) -> None:
        environment = {}
        if settings.api_workers > 1:
            shared = Path(engine.folder, "metrics")
            shared.mkdir(exist_ok=True)
            environment[SHARED_FOLDER] = str(shared)
        arguments = (engine.address, str(folder.absolute()), str(sock.fileno()), str(started_at), str(index))
        self._launch = partial(
            start_module, "app.api.process", settings, *arguments, fds=(sock.fileno(),), **environment
        )
        self._began = 0.0
        self._heartbeat = Heartbeat(engine.address, f"api-{index}")
        self.child = Child(f"API worker {index}", self._start, settings.max_restarts)
        self._watchdog = Watchdog(self.child, self._heartbeat, settings.step_timeout)

    def _start(self) -> subprocess.Popen[bytes]:
        self._began = time.monotonic()
        self._heartbeat.reset()
        return self._launch()

    def tend(self) -> None:
        """Start it again if it has died, end it if it hangs; ChildLostError if that does not help."""
        self._watchdog.look()
        if self.child.exit_code == EXIT_STARTUP_ERROR:
            raise ChildLostError("", EXIT_STARTUP_ERROR)
        self.child.tend(was_useful=time.monotonic() - self._began > _USEFUL_SECONDS)


def _watch(engine: EngineProcess, workers: list[ApiWorker], signals: "queue.SimpleQueue[int]") -> None:
    """Look after the children until a signal tells to stop. Raises ChildLostError."""
    while not _stop_is_wanted(signals, workers):
        engine.tend()
        for worker in workers:
            worker.tend()


def _drain(engine: EngineProcess, workers: list[ApiWorker], signals: "queue.SimpleQueue[int]", timeout: float) -> int:
    """Let API workers end what is open, until they have, the time is up, or a second signal comes.

    Returns the exit code: 0 unless what was open had to be cut.
    """
    log.info("draining: open requests may go on for %g s; a second signal ends them", timeout)
    for worker in workers:
        worker.child.signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout + _LAST_WORDS_SECONDS
    while not all(worker.child.has_ended for worker in workers):
        if _stop_is_wanted(signals, workers) or time.monotonic() > deadline:
            return 1
        engine.tend()  # streams survive its death now, too
    return 0


def _stop_is_wanted(signals: "queue.SimpleQueue[int]", workers: list[ApiWorker]) -> bool:
    """Wait a little for signals, and pass on that keys are to be read again.

    To stop counts more than that a child ended: the same signal may have ended it.
    """
    arrived: list[int] = []
    try:
        arrived.append(signals.get(timeout=_LOOK_SECONDS))
        while True:
            arrived.append(signals.get_nowait())
    except queue.Empty:
        pass
    if signal.SIGHUP in arrived:
        for worker in workers:
            worker.child.signal(signal.SIGHUP)
    return any(number in (signal.SIGTERM, signal.SIGINT) for number in arrived)


def _end_at_once_by_signal() -> None:
    """For now, a signal to stop ends this process as it stands: there is nothing to drain yet, nor a child to stop.

    What is just being downloaded or converted is begun again the next time. The converter ends as children do.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))


def _signals(reads_keys: bool) -> "queue.SimpleQueue[int]":
    """From now on, the signals that are for the supervisor: to stop, to read keys again, or that a child ended.

    A handler may interrupt this process anywhere, in another handler too: of all queues and events, only SimpleQueue
    can be put to then.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD]
    if reads_keys:  # otherwise SIGHUP ends the service: its terminal was closed
        wanted.append(signal.SIGHUP)
    for number in wanted:
        signal.signal(number, lambda number, _frame: arrived.put(number))
    return arrived
