"""The engine's end of its sockets."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest
import zmq

from app.core.heartbeat import EngineHeartbeat
from app.core.request import FinishReason
from app.core.step import ModelRunnerOutput, SchedulerOutput
from app.core.wire import (
    MAX_UNREAD_MESSAGES,
    AbortCommand,
    AdapterOutcome,
    EngineCommand,
    EngineMessage,
    EngineReady,
    HelloCommand,
    StepOutputs,
    StepReported,
    UnloadAdapterCommand,
    WatchCommand,
)
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.engine.server import EngineServer
from app.settings import Settings
from app.worker.echo import EchoWorker
from tests.engine.test_core import command
from tests.patience import PATIENCE, wait_until

NUM_TOKENS = 20_000


class _EndedError(Exception):
    pass


class ApiWorker:
    """A client of the engine that reads its messages only when the test says so."""

    def __init__(self, address: str, name: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.RCVHWM, MAX_UNREAD_MESSAGES), (zmq.LINGER, 0), (zmq.RCVTIMEO, int(PATIENCE * 1000))):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._socket.connect(address)

    def greet(self) -> None:
        self.send(HelloCommand())
        assert isinstance(self.receive(), EngineReady)

    def send(self, message: EngineCommand) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> EngineMessage:
        return msgspec.msgpack.decode(self._socket.recv(), type=EngineMessage)

    def answer(self) -> Iterator[StepOutputs]:
        """Messages up to the end of a request."""
        while True:
            message = self.receive()
            assert isinstance(message, StepOutputs)
            yield message
            if any(output.finish_reason for output in message.outputs):
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def engine(tmp_path: Path) -> tuple[EngineCore, EngineReady]:
    """An engine that repeats prompts."""
    (tmp_path / "config.json").write_text('{"vocab_size": 10}')
    return build_engine(Settings(worker="echo", max_model_len=NUM_TOKENS + 10), tmp_path)


@pytest.fixture
def address(tmp_path: Path, engine: tuple[EngineCore, EngineReady]) -> Iterator[str]:
    """The address at which the engine listens."""
    core, ready = engine
    ends, listens, address = threading.Event(), threading.Event(), f"ipc://{tmp_path}/engine"

    def compile_or_end() -> bool:
        if ends.is_set():
            raise _EndedError
        return False

    def serve() -> None:
        server = EngineServer(address, step_timeout=1.0)
        listens.set()
        with pytest.raises(_EndedError):
            server.run(core, ready)
        server._socket.close()

    core.admit_prepared = compile_or_end  # type: ignore[method-assign]
    thread = threading.Thread(target=serve)
    thread.start()
    assert listens.wait(PATIENCE)
    yield address
    ends.set()
    last = ApiWorker(address, "last")
    last.send(AbortCommand([]))  # wakes it
    thread.join()
    last.close()


@pytest.fixture
def connect(address: str) -> Iterator[Callable[[str], ApiWorker]]:
    """Makes API workers by name, which leave with the test."""
    with ExitStack() as workers:
        yield lambda name: workers.enter_context(closing(ApiWorker(address, name)))


def test_messages_to_a_slow_api_worker_are_merged_and_hold_up_nobody(
    address: str, connect: Callable[[str], ApiWorker]
) -> None:
    slow, quick = connect("0"), connect("1")
    slow.greet()
    quick.greet()
    prompt = [5, 6, 7]
    slow.send(command("slow", prompt, max_tokens=NUM_TOKENS))
    quick.send(command("quick", prompt, max_tokens=4))
    assert [output.token_ids for message in quick.answer() for output in message.outputs] == [[5], [6], [7], [5]]

    heartbeat = EngineHeartbeat(address)
    wait_until(lambda: heartbeat.num_steps >= NUM_TOKENS)
    quick.send(UnloadAdapterCommand("none"))
    assert quick.receive() == AdapterOutcome("none", "")
    messages = list(slow.answer())
    outputs = [output for message in messages for output in message.outputs]
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == list(itertools.islice(itertools.cycle(prompt), NUM_TOKENS))
    assert [output.finish_reason for output in outputs if output.finish_reason] == [FinishReason.LENGTH]
    assert len(messages) < NUM_TOKENS / 4
    assert sum(message.stats.prefix_cache_queries for message in messages if message.stats) == 2 * len(prompt)


class SlowWorker(EchoWorker):
    """A worker whose steps end when the test says so."""

    def __init__(self) -> None:
        super().__init__(8)
        self.steps: list[tuple[list[str], Future[ModelRunnerOutput]]] = []

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        self.result = super().submit(step).result()
        self.steps.append((step.request_ids, Future()))
        return self.steps[-1][1]

    def end_step(self) -> None:
        self.steps[-1][1].set_result(self.result)


def test_requests_that_arrive_during_a_long_step_join_the_next_one(
    engine: tuple[EngineCore, EngineReady], connect: Callable[[str], ApiWorker]
) -> None:
    core, worker = engine[0], SlowWorker()
    core.worker = worker
    core.scheduler.pacer.observe(num_decodes=0, prompt_tokens=3, seconds=10.0)
    api = connect("0")
    api.greet()
    api.send(command("first", [5, 6, 7], max_tokens=2))
    wait_until(lambda: worker.steps)
    api.send(command("second", [1, 2], max_tokens=1))
    wait_until(lambda: "second" in core.scheduler.requests)
    worker.end_step()
    wait_until(lambda: len(worker.steps) == 2)
    worker.end_step()
    assert [names for names, _ in worker.steps] == [["first"], ["first", "second"]]
    assert [output.token_ids for message in api.answer() for output in message.outputs] == [[5], [6], [1]]


def test_only_an_api_worker_through_which_somebody_watches_is_told_of_steps(
    connect: Callable[[str], ApiWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.reporter.WATCH_SECONDS", PATIENCE)  # nobody asks again here
    watching, other = connect("0"), connect("1")
    watching.greet()
    other.greet()
    watching.send(WatchCommand())
    assert isinstance(idle := watching.receive(), StepReported)
    assert (idle.report.rows, idle.report.kv[0].num_used) == ([], 0)
    num_tokens = 20 * MAX_UNREAD_MESSAGES  # the one who watches is behind, and is told of the end all the same
    other.send(command("long", [5, 6, 7], max_tokens=num_tokens))
    assert {type(message) for message in other.answer()} == {StepOutputs}
    reports, joined = [], 0
    while not joined or reports[-1].rows:  # up to the one that tells that nobody runs any more
        message = watching.receive()
        if isinstance(message, StepReported):
            reports.append(message.report)
            joined += message.report.counts.joined
    assert joined == sum(report.counts.left for report in reports) == 1
    assert sum(report.counts.output_tokens for report in reports) == num_tokens
