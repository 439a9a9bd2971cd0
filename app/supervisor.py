"""Process lifecycle: an engine and the API workers around it.

The supervisor itself is light: no torch, no event loop. It starts the engine first, since loading the model takes
longest; API workers start beside it, and say "loading" until the engine is ready.
"""

import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from app.errors import EXIT_STARTUP_ERROR, StartupError
from app.hub.source import find_model
from app.log import configure_logging
from app.metrics import SHARED_FOLDER
from app.settings import Settings

log = logging.getLogger(__name__)

_STOP_SECONDS = 10
"""What a child gets to end by itself."""


class EngineProcess:
    """One engine, as a child of this process. It ends when this process does."""

    def __init__(self, settings: Settings, model_folder: Path) -> None:
        """Start it; `address` is where API workers find it."""
        # A folder that only this user may enter: whoever reaches the socket commands the engine.
        self.folder = tempfile.mkdtemp(prefix="paceline-")
        self.address = f"ipc://{self.folder}/engine"
        self.process = _start("app.engine.process", settings, self.address, str(model_folder.absolute()))

    @property
    def was_ready(self) -> bool:
        """Whether it has loaded its model: from then on there is its socket."""
        return Path(self.folder, "engine").exists()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self.process.poll()

    def stop(self) -> None:
        """End it, and remove its socket."""
        _stop(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


def _start(
    module: str, settings: Settings, *arguments: str, fds: tuple[int, ...] = (), **environment: str
) -> subprocess.Popen[bytes]:
    """Run a module as a child, which reads its settings from stdin, and ends when that does (`app.child`)."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],  # what holds `app`: where the user is, there may be another of that name
        stdin=subprocess.PIPE,
        pass_fds=fds,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, which is seen soon enough
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return process


def _stop(*processes: subprocess.Popen[bytes]) -> None:
    """Tell children to end, and make sure that they do."""
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listen(settings: Settings) -> socket.socket:
    """The server's socket; StartupError if the address is not to be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise StartupError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    sock.listen(2048)
    return sock


def serve(settings: Settings) -> int:
    """Run the service until a signal comes or a child ends; returns the exit code."""
    configure_logging(settings, process="supervisor")
    started_at = time.time()
    sock = listen(settings)  # before anything slow: a port that is taken shows at once
    folder = find_model(settings.model, needs_weights=settings.load_format != "dummy")
    signals = _signals()
    engine = EngineProcess(settings, folder)
    workers = _start_api_workers(settings, engine, folder, sock, started_at)
    try:
        return _watch(engine, workers, signals)
    finally:
        sock.close()
        _stop(*workers)
        engine.stop()


def _start_api_workers(
    settings: Settings, engine: EngineProcess, folder: Path, sock: socket.socket, started_at: float
) -> list[subprocess.Popen[bytes]]:
    """API workers that accept from the same socket, and count together if they are several."""
    environment = {}
    if settings.api_workers > 1:
        environment[SHARED_FOLDER] = str(Path(engine.folder, "metrics"))
        Path(environment[SHARED_FOLDER]).mkdir()
    arguments = (engine.address, str(folder.absolute()), str(sock.fileno()), str(started_at))
    return [
        _start("app.api.process", settings, *arguments, str(index), fds=(sock.fileno(),), **environment)
        for index in range(settings.api_workers)
    ]


def _watch(engine: EngineProcess, workers: list[subprocess.Popen[bytes]], signals: "queue.SimpleQueue[int]") -> int:
    """Wait for the end; returns the exit code."""
    engine_is_dead = False
    while not _stop_is_wanted(signals):
        if ended := [worker.returncode for worker in workers if worker.poll() is not None]:
            if EXIT_STARTUP_ERROR not in ended:  # then it has said why
                log.error("an API worker ended with exit code %d", ended[0])
            return max(1, *ended)
        if engine.exit_code is not None and not engine_is_dead:
            if not engine.was_ready:
                if engine.exit_code != EXIT_STARTUP_ERROR:  # then it has said why
                    log.error("the engine ended with exit code %d before it was ready", engine.exit_code)
                return engine.exit_code if engine.exit_code > 0 else EXIT_STARTUP_ERROR
            engine_is_dead = True
            # The API worker stays, and tells probes and clients so.
            log.error("the engine ended with exit code %d; answering 503 from now on", engine.exit_code)
    return 0


def _stop_is_wanted(signals: "queue.SimpleQueue[int]") -> bool:
    """Wait for the next signals. To stop counts more than that a child ended: the same signal may have ended it."""
    arrived = [signals.get()]
    while not signals.empty():
        arrived.append(signals.get())
    return any(number != signal.SIGCHLD for number in arrived)


def _signals() -> "queue.SimpleQueue[int]":
    """From now on, the signals that are for the supervisor: to stop, or that a child ended.

    A handler may interrupt this process anywhere, in another handler too: of all queues and events, only SimpleQueue
    can be put to then.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda number, _frame: arrived.put(number))
    return arrived
