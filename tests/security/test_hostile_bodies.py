"""Bodies that are made to be expensive, against the whole service: the field is named, and nobody else waits."""

import gzip
import json
import socket
import time
from typing import Any

import psutil
import pytest
from backports import zstd

from tests import web
from tests.security.test_hostile_clients import POST, Server, ask, body_request, connect, server, unharmed

__all__ = ["server", "unharmed"]


def refusal(server: Server, body: bytes, *headers: bytes, status: int = 400) -> dict[str, Any]:
    received = ask(server, body_request(body, *headers))
    head, _, content = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), received[:500]
    error: dict[str, Any] = json.loads(content)["error"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"logit_bias": {str(i): 1 for i in range(10_000)}}, "logit_bias"),
        ({"n": 100_000_000}, "n"),
        ({"best_of": 100_000_000}, "best_of"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"top_k": -5}, "top_k"),
        ({"seed": 10**18 * 100}, "seed"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1]] * 100_000}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, None),
        ({"prompt_embeds": "gASVCw=="}, "prompt_embeds"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_a_field_that_asks_for_too_much_is_named(server: Server, body: Any, param: str | None) -> None:
    error = refusal(server, json.dumps({"prompt": "x", **body}).encode())
    assert param is None or error["param"].startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", b'{"prompt": ["a"' + b",1" * 2_000_000 + b"]}", "prompt: at most 65536 elements"),
        ("/v1/completions", b'{"prompt": [{}' + b",{}" * 1_000_000 + b"]}", "prompt: at most 65536 elements"),
        ("/v1/completions", b'{"prompt": [1' + b",1" * 7_000_000 + b"]}", "prompt: at most 4194304 token ids"),
        ("/v1/completions", b'{"prompt": "a", "stop": [1' + b",1" * 1_000_000 + b"]}", "stop: at most 65536 elements"),
        ("/v1/chat/completions", b'{"messages": [1' + b",1" * 1_000_000 + b"]}", "messages: at most 65536 elements"),
        ("/v1/chat/completions", b'{"messages": [%s]}' % b",".join([b'{"role": "user", "content": "a"}'] * 300_000),
         "messages: at most 65536 elements"),
        ("/v1/chat/completions", b'{"messages": [%s]}' % b",".join([b'{"role": "user", "content": "a"}'] * 5000),
         "messages: at most 4096 (max_messages)"),
        ("/v1/responses", b'{"input": [%s]}' % b",".join([b'{"role": "user", "content": "a"}'] * 5000),
         "input: at most 4096 (max_messages)"),
        ("/v1/completions", b'{"prompt": "%s"}' % (b"a" * 9_000_000), "prompt: at most 8388608 bytes"),
    ],
)  # fmt: skip
def test_bodies_that_would_take_seconds_to_validate_are_refused_before(
    server: Server, path: str, body: bytes, words: str
) -> None:
    process = psutil.Process(server.children()["api"])
    before = sum(process.cpu_times()[:2])
    answer = web.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    spent = sum(process.cpu_times()[:2]) - before  # of the processor: all streams wait meanwhile
    started = time.process_time()
    json.loads(body)
    assert spent < 1 + 4 * (time.process_time() - started)  # to validate it would take many times as long as to read it


def test_ten_thousand_tools_are_refused(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(10_000)]
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": tools})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":' + b"[" * 5_000_000,
        b'{"a":' * 1_000_000,
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 1_000_000 + b"}",
    ],
)
def test_invalid_json_is_refused(server: Server, body: bytes) -> None:
    assert refusal(server, body)["type"] == "invalid_request_error"


def test_the_last_of_equal_keys_counts(server: Server) -> None:
    received = ask(server, body_request(b'{"prompt": "x", "max_tokens": 100, "max_tokens": 2}'))
    assert b'"completion_tokens":2' in received


def test_a_compressed_body_is_bounded_by_what_it_unpacks_to(server: Server) -> None:
    def code(body: bytes, encoding: bytes = b"gzip") -> bytes:
        return ask(server, body_request(body, b"Content-Encoding: " + encoding))[9:12]

    assert code(gzip.compress(b'{"prompt": "x", "max_tokens": 1}')) == b"200"
    assert code(gzip.compress(b" " * 100_000_000)) == b"413"
    assert code(gzip.compress(gzip.compress(b" " * 100_000_000)), b"gzip, gzip") == b"415"
    member = gzip.compress(b" ")
    assert code(member * 100_000) == b"400"  # a hundred thousand members, each of which costs some time
    assert code(member[:-1]) == b"400"
    assert code(b"{}") == b"400"
    empty_blocks = b"\x00\x00\x00\xff\xff" * 4_000_000  # 20 MB of gzip that unpack to nothing
    assert code(member[:10] + empty_blocks) == b"413"


def test_zstd_is_bounded_as_gzip_is(server: Server) -> None:
    def code(body: bytes) -> bytes:
        return ask(server, body_request(body, b"Content-Encoding: zstd"))[9:12]

    def with_window(log: int) -> bytes:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        return packer.compress(b'{"prompt": "x", "max_tokens": 1}') + packer.flush()

    assert code(with_window(23)) == b"200"
    assert code(with_window(27)) == b"400"  # 128 MiB
    packer = zstd.ZstdCompressor()
    bomb = b"".join(packer.compress(b" " * 10_000_000) for _ in range(200)) + packer.flush()
    assert len(bomb) < 200_000  # of two gigabytes
    assert code(bomb) == b"413"
    frame = zstd.compress(b" ")
    for body in (frame * 100_000, frame[:-1], b"{}", b""):
        assert code(body) == b"400"
    empty_blocks = b"\0\0\0" * 7_000_000  # 21 MB that unpack to nothing
    assert code(frame[:6] + empty_blocks) == b"413"


def test_a_hundred_megabytes_are_refused(server: Server) -> None:
    received = ask(server, body_request(b" " * 100_000_000))
    assert received == b"" or received.startswith((b"HTTP/1.1 413", b"HTTP/1.1 408"))


def test_many_tiny_chunks_are_a_body(server: Server) -> None:
    body = b'{"prompt": "x", "max_tokens": 1' + b" " * 200_000 + b"}"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    received = ask(server, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert received[9:12] in (b"200", b"408")


def test_no_url_of_a_request_is_fetched(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        calls: list[tuple[str, Any]] = [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
            ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
            ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "url", "url": url}}]}]}),
        ]  # fmt: skip
        for path, body in calls:
            answer = server.post(path, body)
            assert answer.status_code == 400, answer.text
        text = {"messages": [{"role": "user", "content": f"![x]({url})"}], "max_tokens": 1}
        assert server.post("/v1/chat/completions", text).status_code == 200
        with pytest.raises(TimeoutError):
            trap.accept()


def test_no_browser_is_invited(server: Server) -> None:
    with connect(server) as client:
        client.sendall(
            b"OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nConnection: close\r\n"
            b"Access-Control-Request-Method: POST\r\n\r\n"
        )
        assert b"access-control-allow" not in client.recv(65536).lower()


def test_no_text_of_a_request_reaches_the_log(server: Server) -> None:
    """This also holds at log level debug."""
    marker = "xyzzyplugh"
    for body in (
        {"prompt": marker, "max_tokens": 2},
        {"prompt": marker, "max_tokens": -2},
        {"prompt": marker, "unknown": marker},
        {"prompt": [marker, 1]},
        {"prompt": marker, "stop": [marker] * 9},
    ):
        server.post("/v1/completions", body)
    for content in (marker, [{"type": marker, "text": marker}]):
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        server.post("/v1/chat/completions", {"messages": [{"role": marker, "content": content}]})
    ask(server, body_request(b'{"prompt": "%s' % marker.encode()))
    assert marker not in server.get("/metrics").text
    ask(server, b"GET /the-last-line HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    server.wait_for("the-last-line")
    assert "/v1/completions 200" in "".join(server.log)
    assert marker not in "".join(server.log)
