"""Hostile clients over raw sockets, against the whole service: it stays alive and small, and serves the others."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from tests.server.process import Server, running_server

JSON = b"Host: x\r\nContent-Type: application/json\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + JSON
MAX_GROWTH = 100 * 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--client-timeout", "0.7", "--log-level", "debug")
    with running_server("--worker", "echo", "--max-model-len", "200000", *flags) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """Check after each test that the API worker has survived, has not grown, and serves another client."""
    process = psutil.Process(server.children()["api"])
    before = process.memory_info().rss
    yield
    assert server.post("/v1/completions", {"prompt": "again", "max_tokens": 2}).status_code == 200
    assert process.is_running()
    assert process.memory_info().rss - before < MAX_GROWTH
    wait_until(lambda: server.metric("num_requests_running") == 0 and server.metric("kv_cache_usage_ratio") == 0)


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def answer(client: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def ask(server: Server, sent: bytes) -> bytes:
    """Send bytes on a new connection, and return all bytes that come back."""
    with connect(server) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(sent)
        return answer(client)


def body_request(body: bytes, *headers: bytes) -> bytes:
    lines = (*headers, b"Connection: close", b"Content-Length: %d" % len(body))
    return POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


@pytest.mark.parametrize(
    ("begin", "drip", "status"),
    [(b"", b"", b"408"), (b"GET /version HTTP/1.1\r\n", b"X: y\r\n", b"408"), (b"", b"\r\n", b"408"),
     (POST + b"Content-Length: 100000\r\n\r\n", b" ", b"408")],
)  # fmt: skip
def test_slow_senders_are_cut(server: Server, begin: bytes, drip: bytes, status: bytes) -> None:
    with connect(server) as client:
        client.sendall(begin)
        stop = threading.Event()

        def trickle() -> None:
            while drip and not stop.wait(0.05):
                try:
                    client.sendall(drip)
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert answer(client).startswith(b"HTTP/1.1 " + status)
        finally:
            stop.set()
            sender.join()


def test_an_idle_connection_that_begins_again_has_to_go_on(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += client.recv(65536)
        client.sendall(b"GET /ver")
        assert answer(client).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("num_choices", [1, 4])
def test_a_reader_that_stops_is_aborted(server: Server, num_choices: int) -> None:
    body = {"prompt": "again", "max_tokens": 190_000, "stream": True, "ignore_eos": True, "n": num_choices}
    aborts = 'paceline_request_success_total{finished_reason="abort"} '

    def aborted() -> float:
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(aborts)) for line in lines if line.startswith(aborts))

    before = aborted()
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(body_request(json.dumps(body).encode()))
        wait_until(lambda: server.metric("num_requests_running") > 0)
        wait_until(lambda: aborted() == before + num_choices)
        wait_until(lambda: server.metric("num_requests_running") == 0)


def test_an_answer_that_is_never_read_does_not_keep_its_connection(server: Server) -> None:
    # More than sockets hold, so that it can neither be sent nor forgotten.
    size = len(server.get("/openapi.json").content)
    sent_buffer = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[-1])
    count = 2 * sent_buffer // size
    process = psutil.Process(server.children()["api"])
    before = process.num_fds()
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        assert client.recv(8) == b"HTTP/1.1"  # it has begun to answer, and no more of it is read
        wait_until(lambda: process.num_fds() <= before)


def test_a_half_closed_connection_counts_as_a_client_that_left(server: Server) -> None:
    with connect(server) as client:
        client.sendall(body_request(b'{"prompt": "again", "max_tokens": 190000, "ignore_eos": true}'))
        wait_until(lambda: server.metric("num_requests_running") > 0)
        client.shutdown(socket.SHUT_WR)
        assert answer(client) == b""
    assert ask_half_closed(server, POST + b"Content-Length: 10\r\n\r\n{") == b""


def ask_half_closed(server: Server, sent: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return answer(client)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"Content-Length: 2, 2\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        b"Transfer-Encoding: identity, xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        b"X: a\nContent-Length: 2\n\n{}",
        b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        b"Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_requests_that_two_servers_could_read_differently_are_refused(server: Server, head: bytes) -> None:
    received = ask(server, POST + head)
    assert received.startswith(b"HTTP/1.1 400"), received
    assert b"invalid_request_error" in received
    assert received.count(b"HTTP/1.1") == 1


def test_a_client_cannot_write_headers_of_the_answer(server: Server) -> None:
    received = ask(server, b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: a\rEvil: 1\r\n\r\n")
    assert b"Evil" not in received
    received = ask(server, b"GET /v1/x%0d%0aEvil:%201 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 404")
    assert b"\nEvil" not in received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /version HTTP/1.1\r\nX: " + b"a" * 2**24,
        b"GET /" + b"a" * 2**24,
        b"GET /version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2**16 + b"\r\n\r\n",  # may arrive in one piece
        b"GET /version HTTP/1.1\r\n" + b"X: y\r\n" * 2**20,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 2**24,
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: " + b"a" * 2**24,
    ],
)
def test_headers_trailers_and_chunk_frames_are_bounded(server: Server, head: bytes) -> None:
    received = ask(server, head)
    assert received == b"" or received[9:12] in (b"431", b"400"), received  # reset, where much was still under way


@pytest.mark.parametrize(
    "path",
    [b"/../../../../etc/passwd", b"/docs/%2e%2e/%2e%2e/etc/passwd", b"/v1/models/..%2f..%2f..%2fetc%2fpasswd",
     b"/v1/streams/..%2f..%2fetc%2fpasswd", b"/v1/responses/%2fetc%2fpasswd", b"//etc/passwd", b"/..\\..\\etc\\passwd"],
)  # fmt: skip
def test_no_path_leads_to_a_file(server: Server, path: bytes) -> None:
    received = ask(server, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 404"), received[:300]
    assert b"root:" not in received
