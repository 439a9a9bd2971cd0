"""The step loop for encoders: whole inputs, as many as fit into a step, fair between tenants."""

import logging
import time
from collections.abc import Sequence

from app.core.request import FinishReason
from app.core.step import EncoderWorker, Limits
from app.core.wire import EncodeCommand, EngineStats, RequestOutput, RequestTiming, StepOutputs
from app.fairness.fair_queue import FairQueue

log = logging.getLogger(__name__)


class EncoderCore:
    """As `EngineCore`, for requests that are done after one step and need no cache."""

    def __init__(self, worker: EncoderWorker, limits: Limits) -> None:
        self.worker = worker
        self.limits = limits
        self._open: dict[str, EncodeCommand] = {}
        self._waiting: FairQueue[EncodeCommand] = FairQueue(lambda one: self._open.get(one.request_id) is one)
        self._endings: list[RequestOutput] = []

    @property
    def has_work(self) -> bool:
        return bool(self._open or self._endings)

    @property
    def spare_seconds(self) -> float:
        """None: steps run to their end, so that nothing is in flight between them."""
        return 0.0

    @property
    def suspect(self) -> str:
        """See `EngineCore`: no input is ever run alone for that."""
        return ""

    def admit_compiled(self) -> bool:
        """See `EngineCore`: nothing has to be compiled here."""
        return False

    def add(self, command: EncodeCommand) -> None:
        """Queue a request. One that can never run ends with an error at once."""
        if not 0 < len(command.token_ids) <= self.limits.max_model_len:
            self._endings.append(_ending(command, FinishReason.ERROR, "the input is empty or too long for the model"))
            return
        self._open[command.request_id] = command
        self._waiting.push(command)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests now; unknown ids are ignored."""
        for request_id in request_ids:
            if command := self._open.pop(request_id, None):
                self._waiting.discard(command)
                self._endings.append(_ending(command, FinishReason.ABORT))

    def step(self) -> StepOutputs:
        """Compute the inputs that are first in line."""
        began, commands = time.monotonic(), self._take()
        outputs = self._run(commands)
        ended = time.monotonic()
        for output in outputs:
            timing = RequestTiming(self._open.pop(output.request_id).arrived_at, began, ended, ended)
            output.timing = timing
        stats = EngineStats(
            num_running=len(commands) if self._open else 0,  # nobody hears of this again while nothing comes
            num_waiting=len(self._open),
            step_tokens=sum(len(command.token_ids) for command in commands),
            step_seconds=ended - began,
        )
        outputs += self._endings
        self._endings = []
        return StepOutputs(outputs, stats)

    def _take(self) -> list[EncodeCommand]:
        """The next inputs, as far as the limits of a step go."""
        taken: list[EncodeCommand] = []
        budget = self.limits.max_num_batched_tokens
        while len(taken) < self.limits.max_num_seqs and (command := self._waiting.first()):
            if len(command.token_ids) > budget:
                break
            budget -= len(command.token_ids)
            self._waiting.pop(command)
            self._waiting.charge(command, len(command.token_ids))
            taken.append(command)
        return taken

    def _run(self, commands: list[EncodeCommand]) -> list[RequestOutput]:
        """What comes of inputs; if they fail together, of each alone: only those to blame end with an error."""
        if not commands:
            return []
        try:
            vectors = self.worker.encode(commands)
        except Exception as error:
            log.exception("a step of %d inputs failed", len(commands))
            if len(commands) > 1:
                return [output for command in commands for output in self._run([command])]
            return [_ending(commands[0], FinishReason.ERROR, f"the input cannot be computed: {error}")]
        return [
            RequestOutput(request_id=command.request_id, token_ids=[], vector=vector, finish_reason=FinishReason.STOP)
            for command, vector in zip(commands, vectors, strict=True)
        ]


def _ending(command: EncodeCommand, reason: FinishReason, error: str = "") -> RequestOutput:
    return RequestOutput(request_id=command.request_id, token_ids=[], finish_reason=reason, error=error)
