"""Requests survive their engine, over real sockets: `AsyncEngine` with engines that die when the test says so."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from app.core.heartbeat import EngineHeartbeat
from app.core.request import FinishReason
from app.core.sampling import Logprobs, SamplingParams
from app.core.step import ModelRunnerOutput, SchedulerOutput
from app.core.wire import (
    AdaptersChanged,
    EngineCommand,
    EngineMessage,
    EngineReady,
    EngineStats,
    GenerateCommand,
    HelloCommand,
    LoadAdapterCommand,
    Progress,
    RequestOutput,
    RequestTiming,
    StepOutputs,
    UnloadAdapterCommand,
)
from app.engine.adapters import Adapters
from app.engine.client import AsyncEngine
from app.errors import EngineUnavailableError
from app.worker.echo import EchoWorker
from tests.api.fake_engine import READY, STATS
from tests.engine.test_core import ROWS, command, make_core, run
from tests.patience import PATIENCE


class _Listener:
    def __init__(self) -> None:
        self.last: EngineStats | None = None

    def record_step(self, stats: EngineStats) -> None:
        self.last = stats


class Engine:
    """One engine after the other at one address; each is there until `die`."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/engine"
        self.heartbeat = EngineHeartbeat(self.address)
        self._encode = msgspec.msgpack.encode
        self._decode = msgspec.msgpack.Decoder(EngineCommand).decode

    async def start(self, ready: EngineReady | None = READY) -> None:
        """Wait for the API worker to greet, and answer if it is ready."""
        self._router: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.bind(self.address)
        self._worker, hello = await self._router.recv_multipart()
        assert isinstance(self._decode(hello), HelloCommand)
        if ready:
            await self._router.send_multipart((self._worker, self._encode(ready)))

    async def receive_any(self) -> EngineCommand:
        _, payload = await asyncio.wait_for(self._router.recv_multipart(), PATIENCE)
        received: EngineCommand = self._decode(payload)
        return received

    async def receive(self) -> GenerateCommand:
        received = await self.receive_any()
        assert isinstance(received, GenerateCommand)
        return received

    async def tell(self, message: EngineMessage) -> None:
        await self._router.send_multipart((self._worker, self._encode(message)))

    async def send(self, *outputs: RequestOutput) -> None:
        await self._router.send_multipart((self._worker, self._encode(StepOutputs(list(outputs), STATS))))

    def die(self, suspect: str = "") -> None:
        self.heartbeat.begin_step(suspect)
        self._router.close()


@pytest.fixture
def listener() -> _Listener:
    return _Listener()


@pytest.fixture
async def client(tmp_path: Path, listener: _Listener) -> AsyncIterator[AsyncEngine]:
    client = AsyncEngine(f"ipc://{tmp_path}/engine", "0", 100, listener)
    await client.start()
    yield client
    await client.close()


async def test_the_next_engine_goes_on_where_the_last_one_ended(tmp_path: Path, client: AsyncEngine) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    stream = client.generate(command("a", [1, 2, 3]))
    assert (await engine.receive()).progress is None
    timing = RequestTiming(1.0, 2.0, 3.0, 0.0)
    prompt_logprobs = [Logprobs([2], [-1.0])]
    await engine.send(RequestOutput(request_id="a", token_ids=[], prompt_logprobs=prompt_logprobs))
    await engine.send(RequestOutput(request_id="a", token_ids=[7], timing=timing, num_cached_tokens=2))
    await engine.send(RequestOutput(request_id="a", token_ids=[8], num_cached_tokens=2))
    seen: list[int] = []
    while len(seen) < 2:
        seen += (await anext(stream)).token_ids
    engine.die()
    await client.wait_until_lost()
    assert client.ready is None
    await engine.start()
    again = await engine.receive()
    assert again.prompt_token_ids == [1, 2, 3]
    assert again.progress == Progress(token_ids=[7, 8], num_prompt_logprobs=1, num_cached_tokens=2, timing=timing)
    await engine.send(RequestOutput(request_id="a", token_ids=[9], finish_reason=FinishReason.LENGTH))
    assert (await anext(stream)).token_ids == [9]
    engine.die()


async def test_the_next_engine_gets_the_adapters_that_there_were_and_requests_their_own(
    tmp_path: Path, client: AsyncEngine
) -> None:
    """Those of the setting that were unloaded are unloaded again; what others have loaded meanwhile is left alone."""
    engine = Engine(tmp_path)
    at_start = msgspec.structs.replace(READY, adapters={"a": "/a", "b": "/b"}, adapters_of_start=["a", "b"])
    await engine.start(at_start)
    await client.wait_until_ready()
    request = command("one", [1, 2, 3])
    request.adapter = "a"
    stream = client.generate(request)
    assert (await engine.receive()).adapter_folder == "/a"
    await engine.tell(AdaptersChanged({"a": "/other", "c": "/c"}))
    await engine.send(RequestOutput(request_id="one", token_ids=[7]))
    await anext(stream)  # so it has read what was sent before
    engine.die()
    await client.wait_until_lost()
    await engine.start(msgspec.structs.replace(at_start, adapters={"b": "/b", "d": "/d"}, adapters_of_start=["b"]))
    received = [await engine.receive_any() for _ in range(4)]
    assert received[:3] == [UnloadAdapterCommand("b"), LoadAdapterCommand("a", "/other"), LoadAdapterCommand("c", "/c")]
    assert isinstance(received[3], GenerateCommand)
    assert (received[3].adapter, received[3].adapter_folder) == ("a", "/a")
    engine.die()


class _Shelf(EchoWorker):
    """A worker that notes what it has in its slots for adapters."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.slots: dict[int, str] = {}

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        self.slots[slot] = folder
        done: Future[None] = Future()
        done.set_result(None)
        return done


def test_adapters_without_a_name_are_there_as_long_as_requests_have_them() -> None:
    worker, in_use = _Shelf(), set[int]()
    adapters = Adapters(worker, 2, lambda: in_use)
    adapters.load("a", "/new")
    named = adapters.find("a", "/new")
    former = adapters.find("a", "/old")
    assert named
    assert former
    assert worker.slots == {named.slot: "/new", former.slot: "/old"}
    in_use |= {-1, former.slot}
    assert adapters.find("a", "/old") is former
    assert adapters.folders == {"a": "/new"}
    missing = adapters.find("b", "/gone")
    assert missing
    assert "room for 2 adapters" in str(missing.loading.exception())
    in_use.remove(former.slot)  # its requests have ended, so the slot is free
    adapters.load("c", "/c")
    assert worker.slots == {named.slot: "/new", former.slot: "/c"}
    in_use.add(former.slot)
    assert adapters.find("a", "/old") is not former


async def test_requests_of_a_model_that_has_failed_end_and_its_next_engine_takes_others(
    tmp_path: Path, client: AsyncEngine
) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    client.generate(command("probe", [1, 2]), is_probe=True)
    assert not client.has_requests  # a health check does not keep a model awake
    lost = client.generate(command("lost", [1, 2]))
    assert client.has_requests
    engine.die()
    await client.wait_until_lost()
    client.end_all("its weights are gone")
    output = await anext(lost)
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, "its weights are gone")
    assert not client.has_requests
    await engine.start()
    await client.wait_until_ready()
    client.generate(command("later", [1, 2]))
    assert isinstance(first := await engine.receive_any(), GenerateCommand)
    assert first.request_id == "later"
    engine.die()


async def test_a_load_that_waits_fails_with_the_engine(tmp_path: Path, client: AsyncEngine) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    loading = asyncio.create_task(client.load_adapter("a", "/a"))
    assert await engine.receive_any() == LoadAdapterCommand("a", "/a")
    await client.close()
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await asyncio.wait_for(loading, PATIENCE)
    engine.die()


async def test_a_request_goes_on_behind_other_tokens_than_it_has_generated(tmp_path: Path, client: AsyncEngine) -> None:
    """It is never refused, also if there is no engine or no room at the moment, and it survives its engine."""
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    engine.die()
    await client.wait_until_lost()
    other = command("a", [1, 2, 3])
    other.progress = Progress(token_ids=[7, 8], num_cached_tokens=2)
    stream = client.generate(other)
    await engine.start()
    again = await engine.receive()
    assert (again.prompt_token_ids, again.progress) == ([1, 2, 3], Progress(token_ids=[7, 8], num_cached_tokens=2))
    await engine.send(RequestOutput(request_id="a", token_ids=[9], num_cached_tokens=2))
    assert (await anext(stream)).token_ids == [9]
    engine.die()
    await client.wait_until_lost()
    await engine.start()
    progress = (await engine.receive()).progress
    assert progress is not None
    assert progress.token_ids == [7, 8, 9]
    engine.die()


async def test_statistics_of_a_dead_engine_are_not_kept_for_the_next_one(
    tmp_path: Path, client: AsyncEngine, listener: _Listener
) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    streams = [client.generate(command(name, [1])) for name in ("a", "b")]
    await engine.receive()
    await engine.send(RequestOutput(request_id="a", token_ids=[7]))
    await anext(streams[0])
    assert listener.last == STATS
    engine.die()
    await client.wait_until_lost()
    assert listener.last == EngineStats(num_running=0, num_waiting=2)
    client.abort("a")
    client.abort("b")
    await engine.start()
    await client.wait_until_ready()
    assert listener.last == EngineStats(num_running=0, num_waiting=0)
    engine.die()


async def test_of_requests_without_an_output_only_the_one_to_blame_is_ended(
    tmp_path: Path, client: AsyncEngine
) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    good, bad = client.generate(command("good", [2])), client.generate(command("bad", [1]))
    for number, expected in enumerate((None, False, True, True, True)):  # whether they are suspects
        received = [await engine.receive() for _ in range(2)]
        assert [r.progress and r.progress.is_suspect for r in received] == [expected, expected]
        # Whoever ran alone when an engine died comes first in the next one.
        assert [r.request_id for r in received] == (["good", "bad"] if number < 3 else ["bad", "good"])
        engine.die(suspect="bad" if expected else "")
        await client.wait_until_lost()
        await engine.start()
    output = await asyncio.wait_for(anext(bad), PATIENCE)
    assert output.finish_reason is FinishReason.ERROR
    assert "died 3 times in a row" in output.error
    survivor = await engine.receive()
    assert survivor.request_id == "good"
    await engine.send(RequestOutput(request_id="good", token_ids=[5]))
    assert (await anext(good)).token_ids == [5]
    engine.die()
    await client.wait_until_lost()
    await engine.start()
    progress = (await engine.receive()).progress
    assert progress is not None
    assert not progress.is_suspect  # it has been seen to be innocent
    engine.die()


async def test_the_death_of_an_engine_that_was_never_ready_does_not_count(tmp_path: Path, client: AsyncEngine) -> None:
    engine = Engine(tmp_path)
    await engine.start()
    await client.wait_until_ready()
    stream = client.generate(command("a", [1]))
    await engine.receive()
    engine.die()
    await client.wait_until_lost()
    for _ in range(4):  # as a process does that is dying: it is greeted, and gone
        await engine.start(ready=None)
        engine.die()
    await engine.start()
    progress = (await engine.receive()).progress
    assert progress is not None
    assert not progress.is_suspect
    await engine.send(RequestOutput(request_id="a", token_ids=[5]))
    assert (await anext(stream)).token_ids == [5]
    engine.die()


class _Recorder(EchoWorker):
    def __init__(self) -> None:
        super().__init__(ROWS)
        self.steps: list[list[str]] = []

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        self.steps.append(list(step.request_ids))
        return super().submit(step)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_core_goes_on_with_what_another_began(overlap: bool) -> None:
    core, outputs = make_core(EchoWorker(ROWS), overlap), dict[str, list[RequestOutput]]()
    begun = command("a", [1, 2, 3, 4, 5], max_tokens=6)
    begun.progress = Progress(token_ids=[1, 2, 3], timing=RequestTiming(1.0, 2.0, 3.0, 0.0), num_cached_tokens=4)
    core.add(begun)
    run(core, outputs)
    assert [token for output in outputs["a"] for token in output.token_ids] == [4, 5, 1]
    final = outputs["a"][-1]
    assert final.timing is not None
    assert (final.timing.scheduled_at, final.timing.first_token_at, final.num_cached_tokens) == (2.0, 3.0, 4)


@pytest.mark.parametrize("overlap", [True, False])
def test_suspects_run_alone_until_they_give_a_token(overlap: bool) -> None:
    worker = _Recorder()
    core, outputs = make_core(worker, overlap), dict[str, list[RequestOutput]]()
    for name in ("first", "second"):
        suspect = command(name, [1, 2, 3])
        suspect.progress = Progress(is_suspect=True)
        core.add(suspect)
    core.add(command("new", [4, 5]))
    named: list[str] = []
    while core.has_work:
        named.append(core.suspect)
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
    assert worker.steps[:2] == [["first"], ["second"]]
    assert set(worker.steps[2]) == {"first", "second", "new"}
    assert [name for index, name in enumerate(named) if name not in named[:index]] == ["first", "second", ""]
    assert {name: sum(len(o.token_ids) for o in news) for name, news in outputs.items()} == dict.fromkeys(outputs, 5)
    assert core.scheduler.kv.usage == 0


class _Compiler(EchoWorker):
    """A worker that takes a while to compile any grammar."""

    def compile_grammar(self, grammar: str) -> Future[None]:  # noqa: ARG002 - the protocol's
        compiled: Future[None] = Future()
        threading.Timer(0.05, compiled.set_result, [None]).start()
        return compiled


def test_a_suspect_with_a_grammar_is_not_overtaken_while_that_is_compiled() -> None:
    core = make_core(_Compiler(ROWS), True)
    for name, grammar in (("first", "{}"), ("second", "")):
        suspect = command(name, [1])
        suspect.sampling = SamplingParams(max_tokens=3, seed=0, grammar=grammar)
        suspect.progress = Progress(is_suspect=True)
        core.add(suspect)
    assert core.suspect == "first"


def test_a_request_whose_grammar_cannot_be_compiled_is_no_suspect() -> None:
    core = make_core(EchoWorker(ROWS), True)  # which knows no grammars
    suspect = command("a", [1])
    suspect.sampling = SamplingParams(max_tokens=3, seed=0, grammar="{}")
    suspect.progress = Progress(is_suspect=True)
    core.add(suspect)
    assert core.suspect == ""
    (output,) = core.step().outputs
    assert output.finish_reason is FinishReason.ERROR
    assert not core.has_work
