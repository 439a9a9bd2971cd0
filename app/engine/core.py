"""The step loop: schedule, run, update."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import NamedTuple

from ..core.request import NO_ADAPTER, NO_EXTRAS, Extras, FinishReason, Request, RequestStatus
from ..core.sampling import SamplingParams
from ..core.step import (
    ModelRunnerOutput,
    RequestFaultError,
    SchedulerOutput,
    StepHandle,
    Worker,
    WorkerLostError,
    WorkerOutOfMemoryError,
)
from ..core.wire import GenerateCommand, PredictCommand, RequestCommand, RequestOutput, StepOutputs
from .adapters import Adapter, Adapters
from .cross_blocks import salt_of_source
from .scheduler import Scheduler

log = logging.getLogger(__name__)

_FORESEEN = 0.9
"""Fraction of a step's expected duration that is relied upon."""
_MARGIN = 2.0
"""Planning and submitting a step is given this many times the duration that it has taken lately."""
_FORGET = 0.9
"""Decay of the longest such duration, for each further step."""
_LEAST_SPARE = 0.001
"""Shorter waits, in seconds, are not worth it."""


class EngineCore:
    """Token requests in, token outputs out. Knows nothing of text, sockets or tensors.

    There are two step loops behind one switch. The plain one runs each step to its end. The overlapped one plans
    and submits a step while the one before it runs, so that the device never waits for Python.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        overlap: bool = True,
        num_adapters: int = 0,
        max_source_len: int = 0,
    ) -> None:
        """`num_adapters`: the worker's slots for them. `max_source_len`: most tokens of an encoder's input, if requests
        have any."""
        self.scheduler = scheduler
        self.worker = worker
        self.adapters = Adapters(worker, num_adapters, self._slots_in_use)
        self._max_source_len = max_source_len
        self.step = self._step_overlapped if overlap else self._step_plain
        self.on_step: Callable[[SchedulerOutput, ModelRunnerOutput], None] | None = None
        """Told of each step that was run, while somebody watches."""
        self._in_flight: _Submitted | None = None
        self._last_result_at = 0.0
        self._planning_seconds = 0.0
        self._endings: list[RequestOutput] = []  # of requests that ended between steps
        self._preparing: dict[str, _Preparing] = {}
        """Requests that wait for their grammars, or for an adapter that is being loaded."""

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_requests or self._in_flight is not None or bool(self._endings)

    def add(self, command: RequestCommand) -> None:
        """Queue a request. One that can never run ends with an error at once."""
        if isinstance(command, PredictCommand):
            self._queue(_to_predict(command))
            return
        adapter = None
        if command.adapter:
            adapter = self.adapters.find(command.adapter, command.adapter_folder)
        request = _to_generate(command, adapter)
        needs = {}
        if adapter is not None and not adapter.is_ready:
            needs["the adapter cannot be loaded"] = adapter.loading
        if request.sampling.grammar:
            needs["the grammar cannot be compiled"] = self.worker.compile_grammar(request.sampling.grammar)
        if needs:
            self._preparing[request.request_id] = _Preparing(request, needs)
            if (
                request.is_suspect
            ):  # suspects run one after the other in order of arrival: no suspect may overtake another
                wait(needs.values())
                self.admit_prepared()
            return
        self._queue(request)
        if command.adapter and adapter is None:
            self._end([request.request_id], FinishReason.ERROR, f"the adapter {command.adapter} is not loaded")

    def load_adapter(self, name: str, folder: str) -> Future[None]:
        """See `Adapters.load`."""
        return self.adapters.load(name, folder)

    def _slots_in_use(self) -> set[int]:
        """The worker's slots for adapters that requests have."""
        requests = (*self.scheduler.requests.values(), *(waiting.request for waiting in self._preparing.values()))
        return {request.extras.adapter for request in requests}

    def _queue(self, request: Request) -> None:
        self.scheduler.add(request)
        if not 0 < request.num_prompt_tokens <= self.scheduler.max_model_len:
            self._end([request.request_id], FinishReason.ERROR, "the prompt is empty or too long for the model")
        elif not (self._max_source_len > 0) <= request.num_source_tokens <= self._max_source_len:
            error = f"the model's encoder reads up to {self._max_source_len} tokens, not {request.num_source_tokens}"
            self._end([request.request_id], FinishReason.ERROR, error)

    @property
    def suspect(self) -> str:
        """The request that the next step is for alone, since engines died under it; else empty."""
        return self.scheduler.suspect

    def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests now; unknown ids are ignored."""
        self._end(request_ids, FinishReason.ABORT)

    def _end(self, request_ids: Sequence[str], reason: FinishReason, error: str = "") -> None:
        for request_id in request_ids:
            if request_id in self._preparing:
                self.scheduler.add(self._preparing.pop(request_id).request)
            self._endings += self.scheduler.abort(request_id, reason, error)

    def admit_prepared(self) -> bool:
        """Queue the requests whose grammars and adapters are there; returns whether others still wait for theirs."""
        for request_id, (request, needs) in list(self._preparing.items()):
            if not all(need.done() for need in needs.values()):
                continue
            if errors := [f"{what}: {error}" for what, need in needs.items() if (error := need.exception())]:
                self._end([request_id], FinishReason.ERROR, errors[0])
            else:
                del self._preparing[request_id]
                self._queue(request)
        return bool(self._preparing)

    # ------------------------------------------------------------------ the two loops

    @property
    def spare_seconds(self) -> float:
        """Seconds by which the next step can be delayed without idling the worker: new arrivals can join it."""
        in_flight = self._in_flight
        if in_flight is None or not self._is_running:
            return 0.0
        took = time.monotonic() - max(in_flight.at, self._last_result_at)
        expected = self.scheduler.expected_seconds(in_flight.step)
        spare = _FORESEEN * expected - _MARGIN * self._planning_seconds - took
        return spare if spare > _LEAST_SPARE else 0.0

    def _step_plain(self) -> StepOutputs:
        """Run one step from beginning to end."""
        return self._finish(self._submit())

    def _step_overlapped(self) -> StepOutputs:
        """Submit the next step, then finish the one that was in flight.

        Where drafts need its tokens, the next one is planned when these are there, and before they are told.
        """
        waits = self.scheduler.waits_for_tokens
        in_flight, self._in_flight = self._in_flight, None if waits else self._submit()
        outputs = self._finish(in_flight)
        if waits and not self.suspect:
            self._in_flight = self._submit(self._last_result_at)
        return outputs

    def _submit(self, at: float | None = None) -> "_Submitted | None":
        """Plan and submit the next step. With drafts that were waited for, its time began at `at`."""
        began = time.monotonic()
        step = self.scheduler.schedule()
        if step is None:
            return None
        was_running = self._is_running
        submitted = _Submitted(step, self.worker.submit(step), time.monotonic())
        if at is not None:
            return submitted._replace(at=at) if step.drafts else submitted
        if self._is_running or not was_running:  # otherwise `submit` may have waited for the previous step
            self._planning_seconds = max(submitted.at - began, _FORGET * self._planning_seconds)
        return submitted

    @property
    def _is_running(self) -> bool:
        return self._in_flight is not None and not self._in_flight.handle.done()

    def _finish(self, submitted: "_Submitted | None") -> StepOutputs:
        """Wait for a step, if there is one, and gather the news for clients."""
        outputs, num_tokens, seconds = [], 0, 0.0
        if submitted:
            try:
                result = submitted.handle.result()
            except WorkerLostError:
                raise  # only another process can go on
            except Exception as error:
                log.exception("a step of %d requests failed", len(submitted.step.rows))
                self._discard_in_flight()
                was_too_large = isinstance(error, WorkerOutOfMemoryError)
                blame = str(error) if isinstance(error, RequestFaultError) else ""
                outputs = self.scheduler.recover(submitted.step, was_too_large, blame)
                if was_too_large:
                    self.scheduler.shrink(submitted.step)
            else:
                now = time.monotonic()
                num_tokens, seconds = submitted.step.num_tokens, now - max(submitted.at, self._last_result_at)
                self._last_result_at = now
                outputs = self.scheduler.update(submitted.step, result, seconds)
                if self.on_step is not None:
                    self.on_step(submitted.step, result)
        outputs += self._endings
        self._endings = []
        return StepOutputs(outputs, self.scheduler.take_stats(num_tokens, seconds))

    def _discard_in_flight(self) -> None:
        """Wait for the step after a failed one and drop its result, which depends on the failed step."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight:
            with suppress(Exception):
                in_flight.handle.result()


class _Preparing(NamedTuple):
    """A request that cannot be queued yet."""

    request: Request
    needs: dict[str, Future[None]]
    """What it waits for, by what is to be said if that fails."""


class _Submitted(NamedTuple):
    """A step that the worker has, and may still be running."""

    step: SchedulerOutput
    handle: StepHandle
    at: float


def _to_generate(command: GenerateCommand, adapter: Adapter | None) -> Request:
    """The request for a command: a new one, or one to resume, which was preempted by the death of another engine."""
    salt = command.cache_salt if adapter is None else f"{command.cache_salt} {adapter.salt}"
    request = Request(
        request_id=command.request_id,
        token_ids=list(command.prompt_token_ids),
        num_prompt_tokens=len(command.prompt_token_ids),
        sampling=command.sampling,
        arrived_at=command.arrived_at,
        priority=command.priority,
        cache_salt=salt if command.source is None else salt_of_source(salt, command.source.digest),
        cache_retention=command.cache_retention,
        tenant=command.tenant,
        weight=command.weight,
        max_drafts=command.max_drafts,
        extras=_extras(command, adapter),
    )
    if progress := command.progress:
        request.token_ids += progress.token_ids
        request.num_prompt_logprobs = progress.num_prompt_logprobs
        request.is_suspect = progress.is_suspect
        if progress.timing:
            request.status = RequestStatus.PREEMPTED
            request.num_cached_tokens = progress.num_cached_tokens
            request.scheduled_at = progress.timing.scheduled_at
            request.first_token_at = progress.timing.first_token_at
    return request


def _extras(command: GenerateCommand, adapter: Adapter | None) -> Extras:
    if adapter is None and command.source is None and not command.placed:
        return NO_EXTRAS
    slot = NO_ADAPTER if adapter is None else adapter.slot
    return Extras(adapter=slot, source=command.source, placed=command.placed)


_NO_TOKENS = SamplingParams(max_tokens=0, seed=0)


def _to_predict(command: PredictCommand) -> Request:
    """A command to a predictor as a request: a prompt that no token follows. Media take as many places as they say."""
    token_ids = list(command.token_ids) or [0] * command.num_tokens
    return Request(
        request_id=command.request_id,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=_NO_TOKENS,
        arrived_at=command.arrived_at,
        priority=command.priority,
        tenant=command.tenant,
        weight=command.weight,
        extras=Extras(command.type_ids, command.num_ignored, command.media),
    )
