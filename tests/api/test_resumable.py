"""Streams that a client resumes over another connection."""

import re
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.edge.resumable import ResumableStream, ResumableStreams
from app.errors import NotFoundError, QueueFullError
from tests import web
from tests.api.conftest import Server, start_server
from tests.api.fake_engine import say
from tests.patience import PATIENCE, wait_until

TEXT = "".join(chr(ord("a") + index % 26) for index in range(60))
BODY = {"prompt": "Hi", "stream": True, "max_tokens": 60}


def read(response: httpx.Response) -> list[tuple[int, str]]:
    """(id, data) of a whole stream's events."""
    assert response.status_code == 200, response.text
    return [(int(number), data) for number, data in re.findall(r"id: (\d+)\ndata: (.*)\n\n", response.text)]


@pytest.fixture
def server(server: Server) -> Server:
    server.engine.script = say(TEXT)
    return server


def begin(server: Server, name: str, count: int, **extra: Any) -> list[tuple[int, str]]:
    """Read some events of a new stream, and hang up."""
    headers = {"X-Request-ID": name} if extra else {"X-Request-ID": name, "X-Resumable": "true"}
    seen: list[tuple[int, str]] = []
    with web.stream("POST", f"{server.url}/v1/completions", json={**BODY, **extra}, headers=headers) as stream:
        number = 0
        for line in stream.iter_lines():
            if line.startswith("id: "):
                number = int(line.removeprefix("id: "))
            elif line.startswith("data: "):
                seen.append((number, line.removeprefix("data: ")))
            if len(seen) == count:
                return seen
    return seen


@pytest.mark.parametrize("extra", [{}, {"stream_options": {"resumable": True}}])
def test_a_client_that_lost_its_connection_misses_and_repeats_nothing(server: Server, extra: Any) -> None:
    name = f"resumed-{len(extra)}"
    first = begin(server, name, 3, **extra)
    rest = read(server.get(f"/v1/streams/{name}", headers={"Last-Event-ID": str(first[-1][0])}))
    numbers = [number for number, _ in first + rest]
    assert numbers == list(range(1, len(numbers) + 1))
    data = [data for _, data in first + rest]
    assert data[-1] == "[DONE]"
    assert "".join(re.findall(r'"text":"(\w*)"', "".join(data))) == TEXT
    assert read(server.get(f"/v1/streams/{name}")) == first + rest  # from the beginning, as often as wanted


def test_an_id_may_be_like_a_path(server: Server) -> None:
    first = begin(server, "jobs/7", 1)
    assert read(server.get("/v1/streams/jobs/7"))[:1] == first
    assert read(server.get("/v1/streams/jobs%2F7"))[:1] == first


def test_the_work_goes_on_while_nobody_reads(server: Server) -> None:
    begin(server, "alone", 1)
    wait_until(lambda: server.service.streams.find("default", "alone").num_events > 2)
    assert server.engine.aborted.empty()
    assert read(server.get("/v1/streams/alone"))[-1][1] == "[DONE]"


def test_what_cannot_be_resumed_is_refused(server: Server) -> None:
    begin(server, "taken", 1)
    for path, headers, status, words in (
        ("/v1/streams/unknown", {}, 404, "no such stream"),
        ("/v1/streams/taken", {"Last-Event-ID": "1000"}, 400, "Last-Event-ID"),
        ("/v1/streams/taken", {"Last-Event-ID": "-1"}, 400, "Last-Event-ID"),
        ("/v1/streams/taken", {"Last-Event-ID": "9" * 5000}, 400, "Last-Event-ID"),
    ):
        answer = server.get(path, headers=headers)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
    again = server.post("/v1/completions", BODY, headers={"X-Request-ID": "taken", "X-Resumable": "true"})
    assert again.status_code == 400
    assert "X-Request-ID" in again.json()["error"]["message"]


@pytest.fixture
def narrow(model_folder: Path) -> Iterator[Server]:
    yield from start_server(model_folder, resume_window=0.2, max_stored_bytes=4000)


def test_the_window_and_the_memory_are_bounded(narrow: Server) -> None:
    narrow.engine.script = say("Hi", reason=None)  # never ends by itself
    begin(narrow, "first", 2)
    assert narrow.engine.aborted.get(timeout=PATIENCE)  # its work has been ended
    assert narrow.get("/v1/streams/first").status_code == 404
    narrow.engine.script = say(TEXT)
    read(narrow.post("/v1/completions", BODY, headers={"X-Request-ID": "large", "X-Resumable": "true"}))
    begin(narrow, "another", 1)
    assert narrow.get("/v1/streams/large").status_code == 404


async def test_a_tenant_does_not_push_out_anothers_streams() -> None:
    streams = ResumableStreams(window=60, max_bytes=1000)

    async def events(count: int) -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            yield b"data: " + b"x" * 80 + b"\n\n"

    def run(owner: str, name: str, count: int) -> ResumableStream:
        return streams.start(owner, name, events(count), lambda: None)

    def is_kept(owner: str, name: str) -> bool:
        try:
            return bool(streams.find(owner, name))
        except NotFoundError:
            return False

    await read_all(run("small", "0", 3))
    for number in range(4):
        await read_all(run("large", str(number), 3))
    assert is_kept("small", "0")
    assert [is_kept("large", str(number)) for number in range(4)] == [False, False, True, True]
    reading = run("large", "read", 12).read()  # one that is being read stays, whatever it takes
    for _ in range(12):
        await anext(reading)
    with pytest.raises(QueueFullError):
        run("large", "more", 1)
    await read_all(run("small", "1", 2))
    assert is_kept("small", "0")
    assert is_kept("small", "1")
    await reading.aclose()


async def read_all(stream: ResumableStream) -> None:
    async for _ in stream.read():
        pass


def test_without_a_window_there_are_none(model_folder: Path) -> None:
    for server in start_server(model_folder, resume_window=0):
        answer = server.post("/v1/completions", BODY, headers={"X-Resumable": "true"})
        assert answer.status_code == 400
        assert "resume_window" in answer.json()["error"]["message"]
