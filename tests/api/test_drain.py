"""A server that has to stop, over real sockets: open requests may finish, and new ones are refused."""

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
from fastapi import FastAPI

from app.api.app import create_app
from app.api.process import DrainingServer, load_text_side, running_service
from app.core.heartbeat import Heartbeat
from app.core.request import FinishReason
from app.core.wire import EngineCommand, GenerateCommand, HelloCommand, RequestOutput, StepOutputs
from app.settings import Settings
from tests import web
from tests.api.fake_engine import READY, STATS
from tests.patience import PATIENCE, wait_until


class Engine:
    """Gives each request its first token, and the last one when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/engine"
        self.may_finish = threading.Event()
        self._stop = threading.Event()
        self._router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.bind(self.address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        decode, encode = msgspec.msgpack.Decoder(EngineCommand).decode, msgspec.msgpack.encode
        open_requests: list[tuple[bytes, str]] = []
        while not self._stop.is_set():
            if self.may_finish.is_set() and open_requests:
                worker, name = open_requests.pop()
                output = RequestOutput(request_id=name, token_ids=[73], finish_reason=FinishReason.LENGTH)
                self._router.send_multipart((worker, encode(StepOutputs([output], STATS))))
            if not self._router.poll(20):
                continue
            worker, payload = self._router.recv_multipart()
            match decode(payload):
                case HelloCommand():
                    self._router.send_multipart((worker, encode(READY)))
                case GenerateCommand(request_id=name):
                    output = RequestOutput(request_id=name, token_ids=[72])
                    self._router.send_multipart((worker, encode(StepOutputs([output], STATS))))
                    open_requests.append((worker, name))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._router.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


@contextmanager
def serving(model_folder: Path, engine: Engine, drain_timeout: float) -> Iterator[tuple[DrainingServer, str]]:
    """A server and its URL. The server has to end when the block does."""
    settings = Settings(drain_timeout=drain_timeout)
    text = load_text_side(settings, model_folder)
    running = AsyncExitStack()
    started = threading.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running:
            app.state.service = await running.enter_async_context(
                running_service(settings, text, app.state.admission, engine.address, time.time())
            )
            await app.state.service.engine.wait_until_ready()
            started.set()
            yield

    heartbeat = Heartbeat(engine.address, "api-0")
    server = DrainingServer(create_app(settings, lifespan), settings, running.aclose, heartbeat)
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    yield server, f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.join(PATIENCE)
    assert not thread.is_alive()


STREAM = {"prompt": "Hi", "stream": True, "n": 2}


def test_open_streams_end_well_and_new_requests_are_refused(
    model_folder: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (
        serving(model_folder, engine, drain_timeout=60) as (server, url),
        web.stream("POST", f"{url}/v1/completions", json=STREAM) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        for _ in range(2):  # a second SIGTERM to this process changes nothing
            server.handle_exit(signal.SIGTERM, None)
        assert web.get(f"{url}/health/ready").json() == {"status": "draining"}
        assert web.get(f"{url}/health/ready").status_code == 503
        assert web.get(f"{url}/health/live").status_code == 200
        refused = web.post(f"{url}/v1/completions", json=STREAM)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0
        wait_until(lambda: "requests still open: 1; they have 60 s to finish" in caplog.text)
        engine.may_finish.set()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        reasons = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
        assert reasons.count("length") == 2


def test_a_resumable_stream_goes_on_without_its_client_and_is_read_to_its_end(
    model_folder: Path, engine: Engine
) -> None:
    body, headers = STREAM | {"n": 1}, {"X-Resumable": "true", "X-Request-ID": "one"}
    with serving(model_folder, engine, drain_timeout=60) as (server, url):
        with web.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as stream:
            next(stream.iter_lines())
        server.handle_exit(signal.SIGTERM, None)
        with web.stream("GET", f"{url}/v1/streams/one") as stream:
            assert stream.status_code == 200
            engine.may_finish.set()
            assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"


def test_streams_that_take_too_long_get_an_error_event_and_done(model_folder: Path, engine: Engine) -> None:
    with (
        serving(model_folder, engine, drain_timeout=0.2) as (server, url),
        web.stream("POST", f"{url}/v1/completions", json=STREAM) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.handle_exit(signal.SIGTERM, None)
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        error = json.loads(events[-2])["error"]
        assert error["code"] == "engine_unavailable"
        assert "shutting down" in error["message"]


def test_a_server_without_work_ends_at_once_but_not_by_sigint(
    model_folder: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(model_folder, engine, drain_timeout=60) as (server, url):
        server.handle_exit(signal.SIGINT, None)
        assert web.get(f"{url}/health/ready").status_code == 200
        server.handle_exit(signal.SIGTERM, None)
    assert "draining" not in caplog.text
