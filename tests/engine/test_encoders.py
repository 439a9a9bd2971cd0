"""Encoders on the engine's core, with a worker that has no model: an input is a prompt that no token follows."""

from concurrent.futures import Future

import pytest

from app.core.request import FinishReason
from app.core.step import ModelRunnerOutput, SchedulerOutput
from app.core.wire import PredictCommand, RequestOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone

BUDGET = 12


class CountingWorker:
    """A vector is the input's length; an input of thirteens cannot be computed."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def compile_grammar(self, grammar: str) -> Future[None]:
        raise NotImplementedError

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        self.steps.append(step.request_ids)
        done: Future[ModelRunnerOutput] = Future()
        if any(13 in request.token_ids for request in step.new_requests):
            done.set_exception(RuntimeError("device-side assert"))
        else:
            vectors = {index: bytes([len(request.token_ids)]) for index, request in enumerate(step.new_requests)}
            assert all(request.extras.type_ids == [0] * len(request.token_ids) for request in step.new_requests)
            done.set_result(ModelRunnerOutput([[] for _ in step.rows], vectors=vectors))
        return done


def make_core(worker: CountingWorker, overlap: bool) -> EngineCore:
    pacer = ChunkPacer(1000.0, 16, BUDGET)
    scheduler = Scheduler(
        KVCache([], 16, BUDGET),
        pacer,
        Alone(pacer),
        max_num_seqs=4,
        max_num_batched_tokens=BUDGET,
        max_model_len=10,
        chunked_prefill=False,
    )
    return EngineCore(scheduler, worker, overlap)


def command(name: str, length: int, token: int = 1, priority: int = 0, arrived_at: float = 0.0) -> PredictCommand:
    return PredictCommand(
        request_id=name, token_ids=[token] * length, type_ids=[0] * length, priority=priority, arrived_at=arrived_at
    )


def run(core: EngineCore) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while core.has_work:
        message = core.step()
        assert message.stats is not None
        assert message.stats.step_tokens <= BUDGET
        for output in message.outputs:
            assert output.request_id not in outputs
            outputs[output.request_id] = output
    return outputs


@pytest.mark.parametrize("overlap", [True, False])
def test_steps_are_filled_in_the_order_of_priority_and_arrival(overlap: bool) -> None:
    worker = CountingWorker()
    core = make_core(worker, overlap)
    for index, length in enumerate([5, 6, 4, 1, 1, 1, 1]):
        core.add(command(str(index), length, arrived_at=index))
    core.add(command("first", 10, priority=-1, arrived_at=99))
    outputs = run(core)
    assert [name for step in worker.steps for name in step] == ["first", *"0123456"]
    if not overlap:  # else the step in flight has some of the rows
        assert worker.steps == [["first"], ["0", "1"], ["2", "3", "4", "5"], ["6"]]
    assert outputs["1"].vector == bytes([6])
    assert {output.finish_reason for output in outputs.values()} == {FinishReason.STOP}
    assert all(output.timing is not None and output.timing.finished_at for output in outputs.values())


@pytest.mark.parametrize("overlap", [True, False])
def test_only_what_cannot_be_computed_fails(overlap: bool) -> None:
    worker = CountingWorker()
    core = make_core(worker, overlap)
    core.add(command("good", 2))
    core.add(command("bad", 2, token=13))
    core.add(command("too long", 11))
    core.add(command("empty", 0))
    core.add(command("left", 3, arrived_at=5.0))
    core.abort(["left", "unknown"])
    reasons = {name: output.finish_reason for name, output in run(core).items()}
    assert reasons == {
        "good": FinishReason.STOP,
        "bad": FinishReason.ERROR,
        "too long": FinishReason.ERROR,
        "empty": FinishReason.ERROR,
        "left": FinishReason.ABORT,
    }
    assert all("left" not in step for step in worker.steps)
