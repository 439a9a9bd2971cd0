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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from tests import web
from tests.patience import PATIENCE

REPOSITORY = Path(__file__).parents[2]
_LOG_ONLY = {"stderr": subprocess.PIPE}
_ALL = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


class Ended(NamedTuple):
    """What a process that has ended by itself left: exit code, stdout and stderr."""

    code: int
    output: str
    log: str


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
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"no line of the log matched {pattern!r} in {PATIENCE:g} s:\n" + "".join(self.log)
                ) from None
            assert line is not None, "the server ended:\n" + "".join(self.log)
            self.log.append(line)
            if match := re.search(pattern, line):
                return match

    def wait_for_end(self) -> str:
        """All of the log, once the process has ended."""
        with suppress(AssertionError):
            self.wait_for(r"(?!)")  # matches nothing
        return "".join(self.log)

    def get(self, path: str) -> httpx.Response:
        return web.get(self.url + path)

    def post(self, path: str, body: object) -> httpx.Response:
        return web.post(self.url + path, json=body)

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
        server.url = server.wait_for(r"ready at (http://\S+)")[1]
        try:
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
        assert code == 0, server.wait_for_end()


@contextmanager
def popen(*arguments: str, pipes: Mapping[str, int] = _LOG_ONLY, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with its log as text. At the end, it and all of its descendants are killed if they still run."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, text=True, env={**os.environ, **environment}, **pipes
    ) as process:
        try:
            yield process
        finally:
            _kill_all(process)


def _kill_all(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.kill()


def run(*arguments: str, given: str = "", patience: float = PATIENCE, **environment: str) -> Ended:
    """Run a Python process to its end; AssertionError if it takes longer than `patience`, in seconds."""
    with popen(*arguments, pipes=_ALL, **environment) as process:
        try:
            output, log = process.communicate(given, patience)
        except subprocess.TimeoutExpired:
            _kill_all(process)
            _, log = process.communicate()
            raise AssertionError(f"{' '.join(arguments)} did not end in {patience:g} s:\n{log}") from None
    return Ended(process.returncode, output, log)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
