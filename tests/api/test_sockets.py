"""Behaviour that only shows on sockets: clients that leave, comments in silence, HTTP/1.0, slow readers."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from app.api.edge.sse import EventStream
from tests.api.conftest import Server
from tests.api.fake_engine import say
from tests.patience import PATIENCE

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
CALLS = [
    # path, body, how many texts that makes
    *(("/v1/completions", {"prompt": "Hi", "n": n}, n) for n in (1, 3)),
    *(("/v1/chat/completions", {**CHAT, "n": n}, n) for n in (1, 3)),
    ("/v1/responses", {"input": "Hi"}, 1),
    ("/v1/messages", {**CHAT, "max_tokens": 99}, 1),
]


def request(path: str, body: Any, version: str = "1.1") -> bytes:
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "n"), CALLS)
def test_a_client_that_leaves_is_aborted(server: Server, path: str, body: dict[str, Any], n: int, stream: bool) -> None:
    server.engine.script = say("He", reason=None)  # begins, and never ends
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        client.sendall(request(path, {**body, "stream": stream}))
        submitted = {server.engine.commands.get(timeout=PATIENCE).request_id for _ in range(n)}
        if stream:
            seen = b""
            while b'"He"' not in seen and b'"e"' not in seen:
                seen += client.recv(65536)
        assert server.engine.aborted.empty()
    assert {server.engine.aborted.get(timeout=PATIENCE) for _ in range(n)} == submitted


def test_a_client_that_leaves_before_the_first_token_is_aborted(server: Server) -> None:
    server.engine.released.clear()
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        client.sendall(request("/v1/completions", {"prompt": "Hi", "stream": True}))
        submitted = server.engine.commands.get(timeout=PATIENCE).request_id
    assert server.engine.aborted.get(timeout=PATIENCE) == submitted


async def test_a_client_that_leaves_before_the_answer_begins_is_aborted() -> None:
    stopped = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"never sent"

    async def send(_: object) -> None:
        raise OSError("the client is gone")

    with pytest.raises(OSError, match="gone"):
        await EventStream(events(), stopped.set)({}, send, send)
    assert stopped.is_set()


def test_a_choice_that_meets_its_stop_string_is_aborted(server: Server) -> None:
    server.engine.script = say("Hello, world", reason=None)
    answer = server.complete(stop=["o, w"], n=2)
    assert [(c["text"], c["finish_reason"]) for c in answer["choices"]] == [("Hell", "stop")] * 2
    assert answer["usage"]["completion_tokens"] == 2 * len("Hello, w")
    assert {server.engine.aborted.get(timeout=PATIENCE) for _ in range(2)} == {
        server.engine.commands.get_nowait().request_id for _ in range(2)
    }


def test_nothing_is_aborted_that_has_ended(server: Server) -> None:
    server.complete(n=3)
    server.events("/v1/completions", {"prompt": "Hi"})
    assert server.engine.aborted.empty()


def test_comments_break_the_silence_of_a_queue(server: Server) -> None:
    """The shared server sends one after 50 ms."""
    server.engine.released.clear()
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        client.sendall(request("/v1/completions", {"prompt": "Hi", "stream": True, "temperature": 0}))
        seen = b""
        while seen.count(b": keep-alive\n\n") < 3:
            seen += client.recv(65536)
        assert b"data:" not in seen
        server.engine.released.set()
        while b"[DONE]" not in seen:
            seen += client.recv(65536)
    head, _, _ = seen.partition(b"\r\n\r\n")
    assert b"cache-control: no-cache" in head
    assert b"x-accel-buffering: no" in head
    assert b"text/event-stream" in head


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_a_body_that_ends_with_the_connection(server: Server, stream: bool) -> None:
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        client.sendall(request("/v1/completions", {"prompt": "Hi", "stream": stream}, version="1.0"))
        received = b""
        while piece := client.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(body)["choices"][0]["text"] == "Hello"


def test_a_connection_is_used_again_after_a_stream(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    for stream in (True, False, True):
        body = json.dumps({"prompt": "Hi", "stream": stream})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        assert b"llo" in connection.getresponse().read().replace(b'"}', b"") or stream
    connection.close()


def test_a_request_keeps_its_id(server: Server) -> None:
    assert server.get("/version", headers={"X-Request-ID": "job-7"}).headers["x-request-id"] == "job-7"
    for unfit in ("x" * 129, "a b", 'a"b', ""):
        given = server.get("/version", headers={"X-Request-ID": unfit}).headers["x-request-id"]
        assert given != unfit
        assert 8 <= len(given) <= 128


def test_requests_with_the_same_id_are_kept_apart(server: Server) -> None:
    ids = set()
    for _ in range(2):
        server.post("/v1/completions", {"prompt": "Hi"}, headers={"X-Request-ID": "same"})
        ids.add(server.engine.last_command().request_id)
    assert len(ids) == 2
