"""Process lifecycle: an engine and the API workers around it.

The supervisor itself is light: no torch, no event loop. It starts the engine first, since loading the model takes
longest; the API worker starts beside it, and says "loading" until the engine is ready.
"""

import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

from app.errors import EXIT_STARTUP_ERROR, StartupError
from app.hub.source import find_model
from app.log import configure_logging
from app.settings import Settings

log = logging.getLogger(__name__)

_STOP_SECONDS = 10
"""What a child gets to end by itself."""


class EngineProcess:
    """One engine, as a child of this process. It ends when this process does."""

    def __init__(self, settings: Settings, model_folder: Path) -> None:
        """Start it; `address` is where API workers find it."""
        # A folder that only this user may enter: whoever reaches the socket commands the engine.
        self._folder = tempfile.mkdtemp(prefix="paceline-")
        self.address = f"ipc://{self._folder}/engine"
        self.process = _start("app.engine.process", settings, self.address, str(model_folder.absolute()))

    def stop(self) -> None:
        """End it, and remove its socket."""
        _stop(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)


def _start(module: str, settings: Settings, *arguments: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """Run a module as a child. It reads its settings from stdin, whose end tells it that the parent is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],  # what holds `app`: where the user is, there may be another of that name
        stdin=subprocess.PIPE,
        pass_fds=fds,
    )
    assert process.stdin is not None
    process.stdin.write(settings.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Tell a child to end, and make sure that it does."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
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


class _Wake(threading.Event):
    """Set by signals: of this process, or of a child's end."""

    stop_requested = False

    def on_stop(self, _number: int, _frame: FrameType | None) -> None:
        """The end of everything is wanted."""
        self.stop_requested = True
        self.set()

    def on_child(self, _number: int, _frame: FrameType | None) -> None:
        """A child has ended."""
        self.set()


def serve(settings: Settings) -> int:
    """Run the service until a signal comes or a child ends; returns the exit code."""
    configure_logging(settings, process="supervisor")
    started_at = time.time()
    sock = listen(settings)  # before anything slow: a port that is taken shows at once
    folder = find_model(settings.model)
    wake = _wake_on_signals()
    engine = EngineProcess(settings, folder)
    arguments = (engine.address, str(folder.absolute()), str(sock.fileno()), str(started_at))
    api = _start("app.api.process", settings, *arguments, fds=(sock.fileno(),))
    try:
        return _watch(engine.process, api, wake)
    finally:
        sock.close()
        _stop(api)
        engine.stop()


def _watch(engine: subprocess.Popen[bytes], api: subprocess.Popen[bytes], wake: _Wake) -> int:
    """Wait for the end; returns the exit code."""
    engine_is_dead = False
    while not wake.stop_requested:
        wake.wait()
        wake.clear()
        if api.poll() is not None:
            log.error("the API worker ended with exit code %d", api.returncode)
            return max(1, api.returncode)
        if engine.poll() is not None and not engine_is_dead:
            if engine.returncode == EXIT_STARTUP_ERROR:
                return EXIT_STARTUP_ERROR
            engine_is_dead = True
            # The API worker stays, and tells probes and clients so.
            log.error("the engine ended with exit code %d; answering 503 from now on", engine.returncode)
    return 0


def _wake_on_signals() -> _Wake:
    wake = _Wake()
    signal.signal(signal.SIGTERM, wake.on_stop)
    signal.signal(signal.SIGINT, wake.on_stop)
    signal.signal(signal.SIGCHLD, wake.on_child)
    return wake
