"""Failures inside the server end the streams that wait for them, and leave no work running."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from app.api.edge.request_log import RequestLog
from app.api.generation import choices
from app.api.generation.choices import Choice
from app.api.generation.run import Generation
from app.core.request import FinishReason
from app.core.sampling import SamplingParams
from app.core.wire import EngineStats, GenerateCommand, RequestOutput, StepOutputs
from app.engine.client import AsyncEngine, RequestStream
from app.errors import QueueFullError
from app.settings import Settings
from app.text.chat_template import ChatTemplate
from app.text.output_processor import OutputProcessor, StopConditions
from tests.api.conftest import Server, make_service
from tests.api.fake_engine import READY, STATS, FakeEngine, say
from tests.patience import PATIENCE

SAMPLING = SamplingParams(max_tokens=5, seed=0)


class _BrokenListener:
    def record_step(self, stats: EngineStats) -> None:
        if stats.step_tokens:
            raise RuntimeError("broken")


async def test_a_broken_connection_to_the_engine_ends_its_streams(tmp_path: Path) -> None:
    address, encode = f"ipc://{tmp_path}/engine", msgspec.msgpack.encode
    router: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(address)
    engine = AsyncEngine(address, "0", 4, _BrokenListener())
    await engine.start()
    try:
        worker, _ = await router.recv_multipart()
        await router.send_multipart((worker, encode(READY)))
        await engine.wait_until_ready()
        stream = engine.generate(
            GenerateCommand(request_id="a", prompt_token_ids=[1], sampling=SAMPLING, arrived_at=0.0)
        )
        output = RequestOutput(request_id="a", token_ids=[1])
        await router.send_multipart((worker, encode(StepOutputs([output], STATS))))
        assert (await asyncio.wait_for(anext(stream), PATIENCE)).finish_reason is FinishReason.ERROR
        assert engine.failure == "the connection to the engine failed"
    finally:
        await engine.close()
        router.close()


def test_an_error_of_one_choice_among_several_is_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def outputs() -> AsyncIterator[RequestOutput]:
        raise RuntimeError("broken")
        yield

    monkeypatch.setattr(server.engine, "generate", lambda _: outputs())
    assert server.post("/v1/completions", {"prompt": "Hi", "n": 2}).status_code == 500


class _Panic(BaseException):
    """An exception of the kind that Rust libraries raise."""


_Panic.__module__ = "pyo3_runtime"


def test_a_librarys_panic_ends_its_request_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object) -> None:
        raise _Panic("index out of bounds")

    with monkeypatch.context() as patch:
        patch.setattr(OutputProcessor, "process", panic)
        *_, error = server.events("/v1/completions", {"prompt": "Hi"})
        assert error["error"]["code"] == "internal_error"
        assert "bounds" not in error["error"]["message"]
        answer = server.post("/v1/completions", {"prompt": "Hi"})
        assert answer.status_code == 500
        assert "bounds" not in answer.text
    assert server.complete()["choices"][0]["text"] == "Hello"


async def test_closing_leaves_no_task_behind(model_folder: Path, tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path)
    engine.script = say("He", reason=None)  # begins, and never ends
    service = make_service(model_folder, engine, Settings())
    choices = [Choice([1], SAMPLING, StopConditions())] * 2
    deltas = Generation(service, choices, 2, 0, RequestLog("id", 0.0, record=lambda _: None)).deltas()
    for _ in range(4):
        await anext(deltas)
    await deltas.aclose()
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not {name for name in names if "pump" in name}


def test_choices_that_a_full_queue_refuses_are_not_counted(server: Server) -> None:
    def figures() -> list[bytes]:
        return [
            line
            for line in server.service.metrics.render().splitlines()
            if line.startswith((b"paceline_request_success_total", b"paceline_prompt_tokens_total"))
        ]

    before = figures()
    server.engine.refusal, server.engine.refuse_after = QueueFullError("full"), 2
    assert server.post("/v1/completions", {"prompt": "Hi", "n": 4}).status_code == 429
    assert len(before) == 6
    assert figures() == before


def test_long_chats_are_rendered_in_a_thread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, render = list[threading.Thread](), ChatTemplate.render

    def spy(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return render(*args, **options)

    monkeypatch.setattr(ChatTemplate, "render", spy)
    for length in (1, 1, 9000):
        server.post("/tokenize", {"messages": [{"role": "user", "content": "x" * length}]})
    first, second, aside = threads
    assert first is second
    assert aside is not first


async def test_a_slow_reader_costs_no_copies() -> None:
    stream, token_ids = RequestStream(), [0]
    stream.put(RequestOutput(request_id="a", token_ids=token_ids))
    for token in range(1, 100):
        stream.put(RequestOutput(request_id="a", token_ids=[token]))
    assert (await anext(stream)).token_ids is token_ids
    assert token_ids == list(range(100))


def test_an_adapter_that_was_unloaded_since_its_request_came_does_not_exist(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.engine.adapters["sql"] = "/sql"
    make = choices.make_choices

    def unload_and_make(*given: Any, **options: Any) -> list[Choice]:
        server.engine.adapters.clear()
        return make(*given, **options)

    monkeypatch.setattr("app.api.completions.prepare.make_choices", unload_and_make)
    answer = server.post("/v1/completions", {"model": "sql", "prompt": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
