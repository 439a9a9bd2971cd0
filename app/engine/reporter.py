"""Reports of steps for people who watch the batch. While nobody does, a step costs one look at an empty dictionary."""

import itertools
import time
from collections.abc import Callable

from ..core.request import Request, RequestStatus
from ..core.step import ModelRunnerOutput, SchedulerOutput
from ..core.step_report import KVReport, RowReport, StepCounts, StepReport, TenantReport
from ..core.wire import WATCH_SECONDS, StepOutputs
from .block_pool import BlockPool
from .core import EngineCore

_INTERVAL = 0.1
"""Least seconds between two reports."""
_PAUSE = 250
"""The next report comes no sooner than so many times the processor's seconds that the last one took: so they take 0.4 %
of the engine's time at most, however many requests there are."""
_MOST_STATES = 1024
"""Blocks of a group that a report tells the state of."""


class Reporter:
    """Watches an engine's steps for those who asked, and sums up what lies between two reports."""

    def __init__(
        self,
        core: EngineCore,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._core = core
        self._clock = clock
        self._processor_clock = processor_clock
        self._until: dict[bytes, float] = {}
        """By name of an API worker through which somebody watches: how long, unless it asks again."""
        self._is_pending = False
        self._next_at = 0.0
        self._counts = StepCounts()
        self._last_step = SchedulerOutput()
        self._accepted: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._new_numbers = itertools.count(1)

    def watch(self, api_worker: bytes) -> None:
        """Report to an API worker for some seconds from now on, and once in any case."""
        if not self._until:
            self._counts, self._accepted = StepCounts(), {}
            self._core.on_step = self._take_step
        self._until[api_worker] = self._clock() + WATCH_SECONDS
        self._is_pending = True

    def take_outputs(self, message: StepOutputs) -> None:
        """Note what came of a step, or of requests that ended between steps."""
        if not self._until:
            return
        counts, stats = self._counts, message.stats
        reasons = [output.finish_reason for output in message.outputs]
        counts.left += len(reasons) - reasons.count(None)
        if stats is not None:
            counts.steps += stats.step_tokens > 0
            counts.seconds += stats.step_seconds
            counts.preempted += stats.num_preemptions
            counts.drafted += stats.num_drafted_tokens
            counts.accepted += stats.num_accepted_tokens
        self._is_pending = True

    def _take_step(self, step: SchedulerOutput, result: ModelRunnerOutput) -> None:
        self._last_step = step
        self._counts.joined += len(step.new_requests)
        self._counts.output_tokens += sum(map(len, result.token_ids))
        self._counts.prompt_tokens += step.decodes_and_prompt_tokens[1]
        if step.drafts:
            for row, request_id, tokens in zip(step.rows, step.request_ids, result.token_ids, strict=True):
                if row in step.drafts:
                    self._accepted[request_id] = self._accepted.get(request_id, 0) + max(0, len(tokens) - 1)

    @property
    def is_pending(self) -> bool:
        """Whether there is news that could not be reported yet."""
        return self._is_pending and bool(self._until)

    def report(self) -> tuple[list[bytes], StepReport] | None:
        """The next report and the API workers that it is for, if there is news and it is time; else None."""
        if not self.is_pending or (began := self._clock()) < self._next_at:
            return None
        self._until = {api_worker: until for api_worker, until in self._until.items() if until > began}
        if not self._until:
            self._core.on_step = None
            return None
        used = self._processor_clock()  # others may have the processor meanwhile, which is no reason to pause
        report = self._make(began)
        self._is_pending = False
        self._next_at = began + max(_INTERVAL, _PAUSE * (self._processor_clock() - used))
        return list(self._until), report

    def _make(self, now: float) -> StepReport:
        scheduler, numbers = self._core.scheduler, self._numbers
        counts, self._counts = self._counts, StepCounts()
        accepted, self._accepted = self._accepted, {}
        self._numbers = {name: numbers.get(name) or next(self._new_numbers) for name in scheduler.requests}
        tenants: dict[str, TenantReport] = {}
        for request in scheduler.requests.values():
            tenant = tenants.setdefault(request.tenant, TenantReport(request.tenant, 0, 0, 0))
            if request.status is RequestStatus.RUNNING:
                tenant.running += 1
            else:
                tenant.waiting += 1
                tenant.waiting_tokens += len(request.token_ids)
        places = {name: index for index, name in enumerate(tenants)}
        computed = dict(zip(self._last_step.request_ids, self._last_step.num_scheduled_tokens, strict=True))

        def row(request: Request) -> RowReport:
            name = request.request_id
            return RowReport(
                self._numbers[name],
                request.row,
                places[request.tenant],
                request.num_prompt_tokens,
                request.num_cached_tokens,
                request.num_computed_tokens,
                request.num_output_tokens,
                computed.get(name, 0),
                accepted.get(name, 0),
            )

        preempted = [r for r in scheduler.requests.values() if r.status is RequestStatus.PREEMPTED]
        return StepReport(
            at=now,
            max_rows=scheduler.num_rows,
            block_size=scheduler.kv.block_size,
            counts=counts,
            tenants=list(tenants.values()),
            rows=[row(request) for request in scheduler.running],
            preempted=[self._numbers[request.request_id] for request in preempted],
            kv=[_blocks(pool) for pool in scheduler.kv.pools],
        )


def _blocks(pool: BlockPool) -> KVReport:
    stride = -(-pool.num_blocks // _MOST_STATES)
    return KVReport(pool.num_blocks, pool.num_used, pool.num_cached + pool.num_retained, stride, pool.states(stride))
