"""One of several servers, which can be stopped, restarted on the same port, and frozen."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.patience import PATIENCE, wait_until
from tests.server.process import Server, popen

REPOSITORY = Path(__file__).parents[2]
READY_PATH = re.findall(r"/health/\w+", (REPOSITORY / "Dockerfile").read_text())[-1]
"""What the image's HEALTHCHECK asks, and so what a rolling update with compose waits for."""


class Replica:
    """A server with a port of its own."""

    def __init__(self, port: int, model: Path) -> None:
        self.port, self._model = port, model
        self._stack = ExitStack()

    def start(self) -> None:
        """Start the server, and return as soon as its health check succeeds."""
        arguments = ("--port", str(self.port), "--model", str(self._model), "--max-model-len", "1024")
        self.process = self._stack.enter_context(popen("-m", "app.cli", "serve", *arguments))
        self.server = Server(self.process)
        self.server.url = f"http://127.0.0.1:{self.port}"
        wait_until(self._is_healthy, pause=0.3)

    def _is_healthy(self) -> bool:
        assert self.process.poll() is None, "the server ended:\n" + self.server.wait_for_end()
        try:
            return self.server.get(READY_PATH).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """SIGTERM, and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)

    def signal_all(self, number: int) -> None:
        """Send a signal to each of its processes."""
        for pid in (self.process.pid, *self.server.children().values()):
            os.kill(pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of its processes for a while: the kernel still accepts connections, and nobody answers."""
        self.signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal_all(signal.SIGCONT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()
        self._stack.close()
