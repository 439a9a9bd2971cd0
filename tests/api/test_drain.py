"""A server that has to stop tells the streams that are still open, over real sockets."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import zmq
from fastapi import FastAPI

from app.api.app import create_app
from app.api.process import DrainingServer, load_text_side, running_service, server_config
from app.core.messages import EngineCommand, GenerateCommand, HelloCommand, RequestOutput, StepOutputs
from app.settings import Settings
from tests.api.fake_engine import READY, STATS

GRACE = 2  # seconds: the streams are told after the first


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """An engine that gives each request its first token, and no other."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(f"ipc://{tmp_path}/engine")
    stop = threading.Event()

    def run() -> None:
        decode, encode = msgspec.msgpack.Decoder(EngineCommand).decode, msgspec.msgpack.encode
        while not stop.is_set():
            if not router.poll(50):
                continue
            worker, payload = router.recv_multipart()
            match decode(payload):
                case HelloCommand():
                    router.send_multipart((worker, encode(READY)))
                case GenerateCommand(request_id=request_id):
                    output = RequestOutput(request_id=request_id, token_ids=[72])
                    router.send_multipart((worker, encode(StepOutputs([output], STATS))))

    thread = threading.Thread(target=run)
    thread.start()
    yield f"ipc://{tmp_path}/engine"
    stop.set()
    thread.join()
    router.close()


def test_streams_get_an_error_event_and_done_before_the_grace_ends(model_folder: Path, address: str) -> None:
    settings = Settings()
    text = load_text_side(settings, model_folder)
    running = AsyncExitStack()
    started = threading.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running:
            app.state.service = await running.enter_async_context(running_service(settings, text, address))
            await app.state.service.engine.wait_until_ready()
            started.set()
            yield

    server = DrainingServer(server_config(create_app(settings, lifespan), settings, GRACE), running.aclose)
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/completions"
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    assert started.wait(10)
    body = {"prompt": "Hi", "stream": True, "n": 2}
    with httpx.stream("POST", url, json=body, timeout=10) as first, httpx.stream("POST", url, json=body) as second:
        iterators = [stream.iter_lines() for stream in (first, second)]
        for lines in iterators:
            next(lines)
        server.should_exit = True
        for lines in iterators:
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
            assert events[-1] == "[DONE]"
            error = json.loads(events[-2])["error"]
            assert error["code"] == "engine_unavailable"
            assert "shutting down" in error["message"]
    thread.join(10)
    assert not thread.is_alive()
