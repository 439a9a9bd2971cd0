"""The encoders' step loop, with a worker that has no model."""

from collections.abc import Sequence

from app.core.request import FinishReason
from app.core.step import Limits
from app.core.wire import EncodeCommand, RequestOutput
from app.engine.encoder_core import EncoderCore

LIMITS = Limits(num_blocks=0, max_model_len=10, max_num_seqs=4, max_num_batched_tokens=12, max_itl=0.2)


class CountingWorker:
    """A vector is the input's length; an input of thirteens cannot be computed."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def encode(self, commands: Sequence[EncodeCommand]) -> list[bytes]:
        self.steps.append([command.request_id for command in commands])
        if any(13 in command.token_ids for command in commands):
            raise RuntimeError("device-side assert")
        return [bytes([len(command.token_ids)]) for command in commands]


def command(name: str, length: int, token: int = 1, priority: int = 0, arrived_at: float = 0.0) -> EncodeCommand:
    return EncodeCommand(
        request_id=name, token_ids=[token] * length, type_ids=[0] * length, priority=priority, arrived_at=arrived_at
    )


def run(core: EncoderCore) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while core.has_work:
        message = core.step()
        assert message.stats is not None
        assert message.stats.step_tokens <= LIMITS.max_num_batched_tokens
        for output in message.outputs:
            assert output.request_id not in outputs
            outputs[output.request_id] = output
    return outputs


def test_steps_are_filled_in_the_order_of_priority_and_arrival() -> None:
    worker = CountingWorker()
    core = EncoderCore(worker, LIMITS)
    for index, length in enumerate([5, 6, 4, 1, 1, 1, 1]):
        core.add(command(str(index), length, arrived_at=index))
    core.add(command("first", 10, priority=-1, arrived_at=99))
    outputs = run(core)
    assert worker.steps == [["first"], ["0", "1"], ["2", "3", "4", "5"], ["6"]]
    assert outputs["1"].vector == bytes([6])
    assert {output.finish_reason for output in outputs.values()} == {FinishReason.STOP}
    assert all(output.timing is not None and output.timing.finished_at for output in outputs.values())


def test_only_what_cannot_be_computed_fails() -> None:
    worker = CountingWorker()
    core = EncoderCore(worker, LIMITS)
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
