"""The step loops, with a worker that has no model."""

import asyncio
from concurrent.futures import Future

import msgspec
import pytest

from app.core.request import FinishReason
from app.core.sampling import SamplingParams
from app.core.step import KVGroup, ModelRunnerOutput, SchedulerOutput, WorkerLostError, WorkerOutOfMemoryError
from app.core.wire import GenerateCommand, RequestOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.client import RequestStream
from app.engine.core import EngineCore
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone
from app.worker.echo import EchoWorker

ROWS = 4


class StumblingWorker(EchoWorker):
    """A worker that fails at every step with a request of one of these names."""

    victims = frozenset(("victim", "another"))

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        done = super().submit(step)
        if self.victims.intersection(step.request_ids):
            done = Future()
            done.set_exception(RuntimeError("device-side assert"))
        return done


def make_core(worker: EchoWorker, overlap: bool) -> EngineCore:
    pacer = ChunkPacer(1.0, 4, 64)
    scheduler = Scheduler(
        KVCache([KVGroup(64)], 4, 64),
        pacer,
        Alone(pacer),
        max_num_seqs=ROWS,
        max_num_batched_tokens=64,
        max_model_len=64,
    )
    return EngineCore(scheduler, worker, overlap)


def command(name: str, prompt: list[int], max_tokens: int = 5, arrived_at: float = 0.0) -> GenerateCommand:
    sampling = SamplingParams(max_tokens=max_tokens, seed=0)
    return GenerateCommand(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrived_at=arrived_at)


def run(core: EngineCore, outputs: dict[str, list[RequestOutput]], steps: int = 1000) -> None:
    while core.has_work and steps:
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
        steps -= 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failed_step_ends_those_to_blame_and_no_others(overlap: bool) -> None:
    core, outputs = make_core(StumblingWorker(ROWS), overlap), dict[str, list[RequestOutput]]()
    core.add(command("before it", [5, 6, 7], max_tokens=9))
    run(core, outputs, steps=4)
    core.add(command("victim", [1, 2]))
    core.add(command("beside it", [8, 9, 8, 8, 9, 9]))
    core.add(command("another", [1]))
    run(core, outputs, steps=1 + overlap)
    core.add(command("after it", [3, 4]))
    run(core, outputs)
    for name in StumblingWorker.victims:
        assert [output.finish_reason for output in outputs[name]] == [FinishReason.ERROR]
        assert "device-side" not in outputs[name][0].error  # what is inside stays in the log
    texts = {name: [token for output in outputs[name] for token in output.token_ids] for name in outputs}
    assert texts["before it"] == [5, 6, 7] * 3
    assert texts["beside it"] == [8, 9, 8, 8, 9]
    assert texts["after it"] == [3, 4, 3, 4, 3]
    assert core.scheduler.kv.usage == 0


class SmallWorker(EchoWorker):
    """A worker whose memory suffices for steps of so many tokens and rows."""

    def __init__(self, tokens: int, rows: int) -> None:
        super().__init__(ROWS)
        self._tokens, self._step_rows = tokens, rows
        self.failures = 0

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        done = super().submit(step)
        if step.num_tokens > self._tokens or len(step.rows) > self._step_rows:
            self.failures += 1
            done = Future()
            done.set_exception(WorkerOutOfMemoryError("too large"))
        return done


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("tokens", "rows"), [(20, ROWS), (64, 2), (10, 1)])
def test_steps_shrink_until_they_fit_into_memory(overlap: bool, tokens: int, rows: int) -> None:
    worker = SmallWorker(tokens, rows)
    core, outputs = make_core(worker, overlap), dict[str, list[RequestOutput]]()
    for index in range(2 * ROWS):
        core.add(command(str(index), [index, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=20, arrived_at=index))
    run(core, outputs)
    for index in range(2 * ROWS):
        prompt = [index, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [token for output in outputs[str(index)] for token in output.token_ids] == (prompt * 3)[:20]
    assert 0 < worker.failures < 10
    assert core.scheduler.kv.usage == 0


@pytest.mark.parametrize("length", [1, 2, 3, 24, 32])
def test_a_step_that_cannot_be_made_smaller_ends_its_request(length: int) -> None:
    core, outputs = make_core(SmallWorker(0, ROWS), False), dict[str, list[RequestOutput]]()
    core.add(command("a", [1] * length))
    run(core, outputs)
    assert outputs["a"][-1].finish_reason is FinishReason.ERROR


def test_a_lost_device_ends_the_engine() -> None:
    class LostWorker(EchoWorker):
        def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:  # noqa: ARG002
            lost: Future[ModelRunnerOutput] = Future()
            lost.set_exception(WorkerLostError("an illegal memory access"))
            return lost

    core = make_core(LostWorker(ROWS), False)
    core.add(command("a", [1, 2, 3]))
    with pytest.raises(WorkerLostError):
        core.step()


@pytest.mark.parametrize("overlap", [True, False])
def test_the_last_message_says_that_nothing_runs(overlap: bool) -> None:
    core = make_core(EchoWorker(ROWS), overlap)
    core.add(command("a", [1, 2, 3], max_tokens=50))
    for _ in range(3):
        assert core.step().stats.num_running == 1
    core.abort(["a"])
    while core.has_work:
        stats = core.step().stats
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_abort_ends_a_request_once_wherever_it_is(overlap: bool) -> None:
    core, outputs = make_core(EchoWorker(ROWS), overlap), dict[str, list[RequestOutput]]()
    for index in range(ROWS + 1):
        core.add(command(str(index), [1, 2, 3], max_tokens=50, arrived_at=index))
    run(core, outputs, steps=3)
    core.abort(["0", str(ROWS), "unknown", "0"])  # one that runs, one that waits, one that there never was
    run(core, outputs)
    for name, news in outputs.items():
        reasons = [output.finish_reason for output in news if output.finish_reason]
        assert reasons == [FinishReason.ABORT if name in ("0", str(ROWS)) else FinishReason.LENGTH]
    assert len(outputs) == ROWS + 1
    assert core.scheduler.kv.usage == 0


def test_a_prompt_that_cannot_run_ends_with_an_error() -> None:
    core, outputs = make_core(EchoWorker(ROWS), True), dict[str, list[RequestOutput]]()
    core.add(command("empty", []))
    core.add(command("long", [1] * 65))
    run(core, outputs)
    assert {news[-1].finish_reason for news in outputs.values()} == {FinishReason.ERROR}


class CompilingWorker(EchoWorker):
    """A worker that compiles grammars when the test tells it to."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.compiling: dict[str, Future[None]] = {}

    def compile_grammar(self, grammar: str) -> Future[None]:
        return self.compiling.setdefault(grammar, Future())


def test_a_grammar_that_is_being_compiled_holds_back_its_own_request_only() -> None:
    worker = CompilingWorker()
    core, outputs = make_core(worker, True), dict[str, list[RequestOutput]]()
    for name in ("good", "bad", "left", "none"):
        sampling = SamplingParams(max_tokens=5, seed=0, grammar="" if name == "none" else name)
        core.add(msgspec.structs.replace(command(name, [1, 2, 3]), sampling=sampling))
    assert core.admit_prepared()
    run(core, outputs)
    assert outputs.keys() == {"none"}
    core.abort(["left"])
    worker.compiling["good"].set_result(None)
    worker.compiling["bad"].set_exception(ValueError("no rule `start`"))
    assert not core.admit_prepared()
    run(core, outputs)
    endings = {name: (news[-1].finish_reason, news[-1].error) for name, news in outputs.items()}
    assert endings["good"] == endings["none"] == (FinishReason.LENGTH, "")
    assert endings["left"] == (FinishReason.ABORT, "")
    assert endings["bad"] == (FinishReason.ERROR, "the grammar cannot be compiled: no rule `start`")
    assert core.scheduler.kv.usage == 0


async def test_outputs_that_a_slow_reader_missed_are_merged() -> None:
    stream = RequestStream()
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)  # it waits now
    stream.put(RequestOutput(request_id="a", token_ids=[1]))
    assert (await reader).token_ids == [1]
    stream.put(RequestOutput(request_id="a", token_ids=[2]))
    stream.put(RequestOutput(request_id="a", token_ids=[3, 4]))
    stream.put(RequestOutput(request_id="a", token_ids=[5], finish_reason=FinishReason.STOP))
    rest = [output async for output in stream]
    assert [(output.token_ids, output.finish_reason) for output in rest] == [([2, 3, 4, 5], FinishReason.STOP)]
