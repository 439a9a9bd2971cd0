"""Two replicas behind a real nginx with our configuration: what clients notice of restarts and deaths of one."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.load import CLIENTS, Load
from tests.server.process import Server, free_ports, popen, wait_until

FOLDER = Path(__file__).parents[2] / "deploy" / "nginx"

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")


class Replica:
    """A `paceline serve` at a port of its own, which can be started again there."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._stack = ExitStack()

    def start(self) -> None:
        arguments = ("--port", str(self.port), "--max-model-len", "1024", "--num-kv-blocks", "1000")
        self.process = self._stack.enter_context(popen("-m", "app.cli", "serve", *arguments))
        self.server = Server(self.process)
        self.server.url = self.server.wait_for(r"ready at (http://\S+)")[1]

    def stop(self) -> int:
        """SIGTERM, and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()
        self._stack.close()


@contextmanager
def running_nginx(folder: Path, replicas: list[int], port: int) -> Iterator[str]:
    """nginx with our configuration, but for its port, the replicas' addresses, and where it writes."""
    configuration = (FOLDER / "nginx.conf").read_text()
    configuration = configuration.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{folder}/")
    pattern = re.compile(r"server [\d.]+:8000")
    lines = iter((FOLDER / "replicas.conf").read_text().splitlines())
    addresses = iter(replicas)
    servers = [pattern.sub(lambda _: f"server 127.0.0.1:{next(addresses)}", line) for line in lines]
    (folder / "replicas.conf").write_text("\n".join(servers) + "\n")
    (folder / "nginx.conf").write_text(configuration)
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    check = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    command += ["-g", "daemon off;"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as nginx:
        try:
            wait_until(lambda: _listens(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[Replica]]:
    both = [Replica(port) for port in free_ports(2)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, both))
        yield both
    finally:
        for replica in both:
            replica.close()


@pytest.fixture(scope="module")
def url(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (port,) = free_ports(1)
    with running_nginx(tmp_path_factory.mktemp("nginx"), [replica.port for replica in replicas], port) as url:
        yield url


def test_events_come_as_they_are_made(url: str) -> None:
    body = {"prompt": "Once", "max_tokens": 50, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        pieces = [piece for piece in stream.iter_raw() if b"data:" in piece]
    assert len(pieces) > 20  # one by one, not all at the end


def test_a_rolling_restart_loses_no_request_and_cuts_no_stream(url: str, replicas: list[Replica]) -> None:
    load = Load(url)
    wait_until(lambda: load.whole > CLIENTS, seconds=60)
    for replica in replicas:
        assert replica.stop() == 0
        replica.start()
        # The other one may go once nginx sends requests to this one again.
        wait_until(lambda replica=replica: replica.server.metric("prompt_tokens_total") > 0, seconds=60)
    load.stop()
    assert not load.problems, load.problems[:3]


def test_a_replica_that_is_killed_loses_its_open_streams_only(url: str, replicas: list[Replica]) -> None:
    load = Load(url)
    wait_until(lambda: load.whole > CLIENTS, seconds=60)
    victim = replicas[0]
    for pid in (victim.process.pid, *victim.server.children().values()):
        os.kill(pid, signal.SIGKILL)
    victim.process.wait()
    before = load.whole
    wait_until(lambda: load.whole > before + 3 * CLIENTS, seconds=60)
    load.stop()
    assert len(load.problems) <= CLIENTS, load.problems
    victim.start()


def test_a_conversation_stays_with_its_replica(url: str, replicas: list[Replica]) -> None:
    def asked() -> list[float]:
        return [replica.server.metric("prompt_tokens_total") for replica in replicas]

    for conversation in ("a", "b", "c", "d"):
        before = asked()
        for _ in range(4):
            headers = {"X-Conversation-ID": conversation}
            body = {"prompt": "Hi", "max_tokens": 1}
            assert httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200
        assert sum(now > then for now, then in zip(asked(), before, strict=True)) == 1
