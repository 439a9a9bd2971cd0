"""The JSON log of a real server."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import web
from tests.server.keys import write_keys
from tests.server.process import Server, running_server

SECRET = "marzipan"
"""In every prompt, and so in what the echo worker answers."""
REQUEST = {
    "time",
    "level",
    "process",
    "logger",
    "message",
    "method",
    "path",
    "status",
    "request_id",
    "tenant",
    "duration",
}
TOKENS = {"prompt_tokens", "cached_tokens", "completion_tokens"}
GENERATION = REQUEST | TOKENS | {"queue", "ttft", "finish_reason"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = write_keys(tmp_path_factory.mktemp("keys"), {"wide": {}, "narrow": {"requests_per_minute": 1}})
    with running_server("--worker", "echo", "--api-keys", str(keys), "--log-format", "json") as running:
        yield running
        for line in running.log:
            assert json.loads(line)["logger"].startswith("app.")
        assert SECRET not in "".join(running.log)


def ask(
    server: Server, request_id: str, body: Any, tenant: str = "wide", path: str = "completions", **more: str
) -> Any:
    sent = {"X-Request-ID": request_id, "Authorization": f"Bearer {tenant}", **more}
    body = {"prompt": SECRET, "ignore_eos": True, **body}
    return web.post(f"{server.url}/v1/{path}", json=body, headers=sent)


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.wait_for(f'"request_id": "{request_id}"').string)
    return found


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request(server: Server, is_stream: bool) -> None:
    request_id = f"request-{is_stream}"
    began_at = time.monotonic()
    answer = ask(server, request_id, {"n": 2, "max_tokens": 30, "stream": is_stream})
    line = line_of(server, request_id)
    longest = time.monotonic() - began_at
    assert line.keys() == GENERATION
    assert {name: line[name] for name in ("level", "process", "method", "path", "status", "tenant")} == {
        "level": "info",
        "process": "api",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "tenant": "wide",
    }
    assert line["message"] == "POST /v1/completions 200"
    assert (line["completion_tokens"], line["cached_tokens"], line["finish_reason"]) == (60, 0, "length")
    if not is_stream:
        assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert 0 < line["queue"] <= line["ttft"] <= line["duration"] < longest


def test_a_failed_request_is_a_log_line_too(server: Server) -> None:
    def check(request_id: str, status: int, error: str, keys: set[str] = REQUEST) -> dict[str, Any]:
        line = line_of(server, request_id)
        assert (line["status"], line["error"]) == (status, error)
        assert line.keys() == keys | {"error"}
        return line

    long = {"n": 16, "max_tokens": 8000}

    ask(server, "bad", {"max_tokens": SECRET})
    check("bad", 400, "invalid_request_error")
    ask(server, "model", {"model": SECRET})
    check("model", 404, "model_not_found")
    ask(server, "stranger", {}, tenant="nobody")
    check("stranger", 401, "invalid_api_key")
    for index in range(2):
        ask(server, f"often-{index}", {}, tenant="narrow")
    assert check("often-1", 429, "rate_limit_exceeded")["tenant"] == "narrow"
    late = "the request's time is over (X-Request-Timeout, or the server's request_timeout)"
    for is_stream, status in ((False, 504), (True, 200)):
        ask(server, f"late-{status}", {**long, "stream": is_stream}, **{"X-Request-Timeout": "0.5"})
        assert check(f"late-{status}", status, late, GENERATION)["finish_reason"] == "timeout,abort"


def test_a_client_that_goes_away(server: Server) -> None:
    sent = {"X-Request-ID": "left", "x-api-key": "wide"}
    body = {"prompt": SECRET, "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with web.stream("POST", f"{server.url}/v1/completions", json=body, headers=sent) as stream:
        next(stream.iter_lines())
    line = line_of(server, "left")
    assert line["finish_reason"] == "abort"
    assert 0 < line["completion_tokens"] < 8000


def test_a_resumable_stream_has_one_line_when_its_work_has_ended(server: Server) -> None:
    sent = {"X-Request-ID": "resumed", "x-api-key": "wide", "X-Resumable": "true"}
    body = {"prompt": SECRET, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with web.stream("POST", f"{server.url}/v1/completions", json=body, headers=sent) as stream:
        next(stream.iter_lines())
    rest = web.get(f"{server.url}/v1/streams/resumed", headers={"x-api-key": "wide", "X-Request-ID": "reader"})
    assert rest.text.endswith("data: [DONE]\n\n")
    line = line_of(server, "resumed")
    assert (line["finish_reason"], line["completion_tokens"]) == ("length", 4000)
    line_of(server, "reader")
    assert len([one for one in server.log if '"request_id": "resumed"' in one]) == 1


def test_a_line_is_one_line(server: Server) -> None:
    """This holds whatever a client puts into a path."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /%0A%7B%7D HTTP/1.1\r\nHost: a\r\nX-Request-ID: odd\r\nx-api-key: wide\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 404")
    assert line_of(server, "odd")["message"] == "GET /%0A%7B%7D 404"
