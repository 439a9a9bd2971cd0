"""Two replicas behind a real nginx with our configuration: what clients notice of restarts and deaths of one."""

import itertools
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests import web
from tests.deploy.load import CLIENTS, Load
from tests.deploy.replica import REPOSITORY, Replica
from tests.patience import wait_until
from tests.server.process import free_ports

FOLDER = REPOSITORY / "deploy" / "nginx"

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")


@contextmanager
def running_nginx(folder: Path, replicas: list[Replica], changes: dict[str, str] | None = None) -> Iterator[str]:
    """nginx with our configuration, but for its port, the replicas' addresses, where it writes, and `changes`."""
    (port,) = free_ports(1)
    configuration = (FOLDER / "nginx.conf").read_text()
    for old, new in {"listen 8080": f"listen 127.0.0.1:{port}", "/tmp/": f"{folder}/", **(changes or {})}.items():
        assert old in configuration
        configuration = configuration.replace(old, new)
    (folder / "nginx.conf").write_text(configuration)
    for name in ("replicas.conf", "every_replica.conf"):
        ports = iter(replicas)
        addressed = re.sub(
            r"server [\d.]+:8000",
            lambda _, ports=ports: f"server 127.0.0.1:{next(ports).port}",
            (FOLDER / name).read_text(),
        )
        (folder / name).write_text(addressed)
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
def url(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_nginx(tmp_path_factory.mktemp("nginx"), replicas) as url:
        yield url


def test_events_come_as_they_are_made(url: str) -> None:
    body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with web.stream("POST", f"{url}/v1/completions", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        pieces = [piece for piece in stream.iter_raw() if b"data:" in piece]
    assert len(pieces) > 20  # one by one, not all at the end


def test_a_rolling_restart_loses_no_request_and_cuts_no_stream(url: str, replicas: list[Replica]) -> None:
    load = Load(url)
    wait_until(lambda: load.whole > CLIENTS)
    for replica in replicas:
        assert replica.stop() == 0
        replica.start()
    load.stop()
    assert not load.problems, load.problems[:3]


def test_a_replica_that_is_killed_loses_its_open_streams_only(url: str, replicas: list[Replica]) -> None:
    load = Load(url)
    wait_until(lambda: load.whole > CLIENTS)
    victim = replicas[0]
    victim.signal_all(signal.SIGKILL)
    victim.process.wait()
    before = load.whole
    wait_until(lambda: load.whole > before + 3 * CLIENTS)
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
            assert web.post(f"{url}/v1/completions", json=body, headers=headers).status_code == 200
        assert sum(now > then for now, then in zip(asked(), before, strict=True)) == 1


def test_a_stream_is_read_on_and_a_response_found_wherever_they_are(url: str) -> None:
    for index in range(8):  # of each other one, the replica that is asked first has nothing
        headers = {"X-Resumable": "true", "X-Request-ID": f"resumed-{index}"}
        body = {"prompt": "Once", "max_tokens": 20, "ignore_eos": True, "stream": True}
        with web.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as stream:
            lines = stream.iter_lines()
            seen = [line for line in (next(lines) for _ in range(8)) if line.startswith("id: ")]
        last = seen[-1].removeprefix("id: ")
        rest = web.get(f"{url}/v1/streams/resumed-{index}", headers={"Last-Event-ID": last})
        assert rest.status_code == 200, rest.text
        assert int(re.findall(r"^id: (\d+)$", rest.text, re.MULTILINE)[0]) == int(last) + 1
        assert rest.text.endswith("data: [DONE]\n\n")

        response = web.post(f"{url}/v1/responses", json={"input": "Hi", "max_output_tokens": 16}).json()
        address = f"{url}/v1/responses/{response['id']}"
        assert web.get(address).json()["output"] == response["output"]
        assert web.delete(address).status_code == 200
        gone = web.get(address)
        assert (gone.status_code, gone.json()["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("conversations", [False, True])
def test_a_frozen_replica_costs_few_requests_the_silence_that_is_allowed(
    replicas: list[Replica], tmp_path: Path, conversations: bool
) -> None:
    with running_nginx(tmp_path, replicas, {"proxy_read_timeout 9m": "proxy_read_timeout 2s"}) as url:

        def seconds_of_answer(index: int) -> float:
            start = time.monotonic()
            headers = {"X-Conversation-ID": f"{index}"} if conversations else {}
            body = {"prompt": "Hi", "max_tokens": 1}
            answer = web.post(f"{url}/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            return time.monotonic() - start

        with replicas[0].frozen():
            seconds = [seconds_of_answer(index) for index in range(12)]
        assert max(seconds) < 5
        assert sum(each > 2 for each in seconds) in (1, 2)  # it is tried again every 5 s
        # Thawed, it is given requests again.
        before = replicas[0].server.metric("prompt_tokens_total")
        for index in itertools.count():
            seconds_of_answer(index)
            if replicas[0].server.metric("prompt_tokens_total") > before + 5:
                break
            assert index < 1000


def test_one_client_may_have_hundreds_of_requests_open(url: str) -> None:
    address = "127.0.0.1", int(url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(400):
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        assert web.get(f"{url}/v1/models").status_code == 200


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_tls(replicas: list[Replica], tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=a -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {tmp_path}/tls/key.pem -out {tmp_path}/tls/cert.pem".split(),
        check=True,
        capture_output=True,
    )
    (port,) = free_ports(1)
    (tmp_path / "tls.conf").write_text((FOLDER / "tls.conf").read_text().replace("8443", str(port)))
    context = ssl.create_default_context(cafile=tmp_path / "tls" / "cert.pem")
    with running_nginx(tmp_path, replicas):
        assert httpx.get(f"https://127.0.0.1:{port}/v1/models", verify=context).status_code == 200


def test_what_nginx_refuses_itself_has_the_form_of_the_api(url: str, replicas: list[Replica], tmp_path: Path) -> None:
    def code(answer: httpx.Response) -> str | None:
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        found: str | None = error["code"]
        return found

    large = web.post(f"{url}/v1/completions", json={"prompt": "x" * (17 << 20)})
    assert (large.status_code, code(large)) == (413, "payload_too_large")
    hidden = web.get(f"{url}/metrics")
    assert (hidden.status_code, code(hidden)) == (404, None)
    with running_nginx(tmp_path, replicas, {"# limit_conn clients 256": "limit_conn clients 1"}) as strict:
        with socket.create_connection(("127.0.0.1", int(strict.rpartition(":")[2]))) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
            wait_until(lambda: web.get(f"{strict}/v1/models").status_code == 429)
            refused = web.get(f"{strict}/v1/models")
        assert (refused.status_code, code(refused)) == (429, "too_many_connections")
        assert refused.headers["retry-after"] == "1"


def test_without_any_replica_the_answer_says_so(tiny_model: Path, tmp_path: Path) -> None:
    nobody = [Replica(port, tiny_model) for port in free_ports(2)]
    with running_nginx(tmp_path, nobody) as url:
        for path in ("/v1/models", "/v1/streams/x"):
            answer = web.get(f"{url}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert answer.headers["retry-after"] == "1"
