"""A real server process, started as a user starts it."""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx

START_SECONDS = 90  # a first start converts the model


class Server:
    """A running `paceline serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.url = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log; AssertionError if it does not come."""
        while True:
            line = self._lines.get(timeout=START_SECONDS)
            assert line is not None, "the server ended:\n" + "".join(self.log)
            self.log.append(line)
            if match := re.search(pattern, line):
                return match

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def metric(self, name: str) -> float:
        """A metric without labels."""
        found = re.search(rf"^paceline_{name} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def children(self) -> dict[str, int]:
        """Module to process id of the server's own children."""
        listing = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        found = re.findall(r"(\d+) .*-m app\.(\w+)\.(?:process|server|convert)", listing.stdout)
        return {module: int(pid) for pid, module in found}


@contextmanager
def running_server(
    *arguments: str, command: tuple[str, ...] = ("-m", "app.cli", "serve", "--port", "0"), **environment: str
) -> Iterator[Server]:
    """A server that is ready; stopped by SIGTERM, to which it has to exit with 0."""
    with popen(*command, *arguments, **environment) as process:
        server = Server(process)
        try:
            server.url = server.wait_for(r"ready at (http://\S+)")[1]
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
        assert code == 0


@contextmanager
def popen(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with its log as text; killed if it has not ended at the end."""
    with subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], object], seconds: float = 10.0, pause: float = 0.02) -> None:
    """Poll a condition that another process fulfils."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
