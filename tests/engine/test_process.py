"""The engine's side of its sockets."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from app.core.heartbeat import EngineHeartbeat
from app.core.messages import (
    MAX_UNREAD_MESSAGES,
    AbortCommand,
    EngineCommand,
    EngineMessage,
    EngineReady,
    HelloCommand,
    StepOutputs,
)
from app.core.request import FinishReason
from app.engine.build import build_engine
from app.engine.process import EngineServer
from app.settings import Settings
from tests.engine.test_core import command
from tests.server.process import wait_until

NUM_TOKENS = 20_000


class _EndedError(Exception):
    pass


class ApiWorker:
    """A client of the engine, which reads when it is told to."""

    def __init__(self, address: str, name: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.RCVHWM, MAX_UNREAD_MESSAGES), (zmq.LINGER, 0), (zmq.RCVTIMEO, 10_000)):
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
def address(tmp_path: Path) -> Iterator[str]:
    """Of an engine that repeats prompts."""
    (tmp_path / "config.json").write_text('{"vocab_size": 10}')
    core, ready = build_engine(Settings(worker="echo", max_model_len=NUM_TOKENS + 10), tmp_path)
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

    core.admit_compiled = compile_or_end  # type: ignore[method-assign]
    thread = threading.Thread(target=serve)
    thread.start()
    assert listens.wait(10)
    yield address
    ends.set()
    last = ApiWorker(address, "last")
    last.send(AbortCommand([]))  # wakes it
    thread.join()
    last.close()


def test_a_worker_that_is_behind_is_told_in_fewer_words_and_holds_up_nobody(address: str) -> None:
    slow, quick = ApiWorker(address, "0"), ApiWorker(address, "1")
    slow.greet()
    quick.greet()
    prompt = [5, 6, 7]
    slow.send(command("slow", prompt, max_tokens=NUM_TOKENS))
    quick.send(command("quick", prompt, max_tokens=4))
    assert [output.token_ids for message in quick.answer() for output in message.outputs] == [[5], [6], [7], [5]]

    heartbeat = EngineHeartbeat(address)
    wait_until(lambda: heartbeat.num_steps >= NUM_TOKENS, 60)
    messages = list(slow.answer())
    outputs = [output for message in messages for output in message.outputs]
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == list(itertools.islice(itertools.cycle(prompt), NUM_TOKENS))
    assert [output.finish_reason for output in outputs if output.finish_reason] == [FinishReason.LENGTH]
    assert len(messages) < NUM_TOKENS / 4
    assert sum(message.stats.prefix_cache_queries for message in messages if message.stats) == 2 * len(prompt)
    slow.close()
    quick.close()
