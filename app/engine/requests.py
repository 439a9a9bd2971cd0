"""Every request from its arrival to its end: who waits, who runs and holds what, and what steps gave them."""

from collections.abc import Callable

from ..core.request import FinishReason, Request, RequestStatus
from ..core.step import NOTHING_ALLOWED, ModelRunnerOutput, SchedulerOutput
from ..core.wire import COUNTERS, EngineStats, RequestOutput, RequestTiming
from ..fairness.policy import SharePolicy
from .kv_cache import KVCache

Clock = Callable[[], float]


class RequestBatch:
    """Owns all requests; `Scheduler` adds the planning of steps for them.

    Since steps run in order, blocks and rows that are given back while a step is in flight can be given out again at
    once.
    """

    def __init__(
        self,
        kv: KVCache,
        policy: SharePolicy,
        max_num_seqs: int,
        max_model_len: int,
        chunked_prefill: bool,
        clock: Clock,
    ) -> None:
        if not kv.holds(max_model_len):
            raise ValueError("the longest request must fit when it runs alone")
        self.kv = kv
        self.policy = policy
        self.max_model_len = max_model_len
        self.chunked_prefill = chunked_prefill
        self.clock = clock
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []  # in the policy's order: the last one is preempted first
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        # Of a failed step, or of an engine that died: each must run alone until it has given a token.
        self._suspects: list[Request] = []
        self._counters = dict.fromkeys(COUNTERS, 0)

    # ------------------------------------------------------------------ arrivals and departures

    def add(self, request: Request) -> None:
        """Queue a new request. A suspect goes before all others."""
        request.max_num_tokens = min(request.num_prompt_tokens + request.sampling.max_tokens, self.max_model_len)
        self.requests[request.request_id] = request
        if request.is_suspect:
            self._suspects.append(request)
        else:
            self.policy.push(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT, error: str = "") -> list[RequestOutput]:
        """End a request now; returns its final output, or nothing if it had ended before."""
        request = self.requests.get(request_id)
        return [self._finish(request, [], reason, error)] if request else []

    @property
    def has_requests(self) -> bool:
        return bool(self.requests)

    @property
    def num_rows(self) -> int:
        """Most requests that can run."""
        return len(self.running) + len(self._free_rows)

    @property
    def suspect(self) -> str:
        """The request that the next step is for alone; empty if it is for all."""
        return self._suspects[0].request_id if self._suspects else ""

    def _preempt(self, request: Request) -> None:
        """Take a running request's memory away; it will be computed again later. Its stream only pauses."""
        self._leave_batch(request)
        request.status = RequestStatus.PREEMPTED
        self._counters["num_preemptions"] += 1
        if request not in self._suspects:
            self.policy.put_back(request)

    # ------------------------------------------------------------------ after a step

    def update(self, step: SchedulerOutput, result: ModelRunnerOutput, seconds: float) -> list[RequestOutput]:
        """Take in what a step gave after `seconds`; returns the news for clients."""
        outputs = []
        now, requests, logprobs = self.clock(), self.requests, result.logprobs
        for index, (request_id, tokens) in enumerate(zip(step.request_ids, result.token_ids, strict=True)):
            request = requests.get(request_id)
            if request is None:  # ended while the step ran
                continue
            prompt_logprobs = result.prompt_logprobs.get(index)
            num_drafts = request.num_drafts if tokens else 0  # the next step, planned ahead, may have some already
            if num_drafts:
                self._count_drafts(request, len(tokens) - 1)
            if index in result.vectors:
                request.first_token_at = now
                output = self._finish(request, [], FinishReason.STOP)
                output.vector = result.vectors[index]
            elif tokens:
                output = self._take_tokens(request, tokens, now) if tokens[-1] >= 0 else self._fail(request, tokens[-1])
                if index in logprobs:
                    output.logprobs = logprobs[index][: len(output.token_ids)]
            else:
                self.kv.commit(request)
                if not prompt_logprobs:
                    continue
                output = self._output(request, [])
            if num_drafts:
                output.num_drafted_tokens = num_drafts
                output.num_accepted_tokens = min(len(tokens) - 1, len(output.token_ids))
            if prompt_logprobs:
                output.prompt_logprobs = prompt_logprobs
                request.num_prompt_logprobs += len(prompt_logprobs)
            outputs.append(output)
        self.policy.observe(*step.decodes_and_prompt_tokens, seconds)
        return outputs

    def _count_drafts(self, request: Request, num_accepted: int) -> None:
        self._counters["num_drafted_steps"] += 1
        self._counters["num_drafted_tokens"] += request.num_drafts
        self._counters["num_accepted_tokens"] += num_accepted

    def _fail(self, request: Request, fault: int) -> RequestOutput:
        """End a request for which no token can be sampled."""
        if fault == NOTHING_ALLOWED:
            reason = "no text matches the grammar, or none that is simple enough"
            output = self._finish(request, [], FinishReason.ERROR, reason)
            output.blames_request = True
            return output
        self.kv.forget()  # its blocks may hold no numbers either
        return self._finish(request, [], FinishReason.ERROR, "the model's output is not a number")

    def recover(self, step: SchedulerOutput, was_too_large: bool = False, blame: str = "") -> list[RequestOutput]:
        """After a step that failed: end the request that is to blame, or run the step's requests apart to find it.

        None is to blame for a step that was too large for the memory, as long as it can be made smaller.
        `blame`: what one of the requests has asked for in vain, if that is known.

        No step may be in flight. What the failed one wrote is unknown, so everything is computed again.
        """
        suspects = [self.requests[name] for name in step.request_ids if name in self.requests]
        outputs = []
        is_smallest = step.num_tokens == 1 or not self.chunked_prefill
        if len(step.request_ids) == 1 and (is_smallest or not was_too_large):
            error = blame or "the model failed on this request"
            outputs = [self._finish(request, [], FinishReason.ERROR, error) for request in suspects]
            for output in outputs:
                output.blames_request = bool(blame)
        else:
            self._suspects += [request for request in suspects if request not in self._suspects]
        for request in self.running[::-1]:
            self._preempt(request)
        for request in self.requests.values():
            request.num_in_flight = request.num_drafts = 0
        self.policy.forget_planned()
        self.kv.forget()
        return outputs

    def _take_tokens(self, request: Request, tokens: list[int], now: float) -> RequestOutput:
        """Append sampled tokens, as far as none of them ends the request."""
        request.num_in_flight -= 1
        if request.num_drafts:
            request.num_drafts = 0
            if request.status is RequestStatus.RUNNING:
                request.num_computed_tokens += len(tokens) - 1
        if self._suspects and request in self._suspects:
            self._suspects.remove(request)
        if request.sampling.max_tokens == 0:
            return self._finish(request, [], FinishReason.LENGTH)
        is_first = request.first_token_at == 0.0
        if is_first:
            request.first_token_at = now
        reason = None
        token_ids, num_before = request.token_ids, len(request.token_ids)
        for token in tokens:
            token_ids.append(token)
            if token in request.sampling.stop_token_ids:
                reason = FinishReason.STOP
                break
            if len(token_ids) >= request.max_num_tokens:
                reason = FinishReason.LENGTH
                break
        tokens = token_ids[num_before:]
        self.policy.charge(request, 0, len(tokens))
        if request.num_computed_tokens // self.kv.block_size > request.num_registered_blocks:
            self.kv.commit(request)
        if reason is not None:
            return self._finish(request, tokens, reason)
        output = self._output(request, tokens)
        if is_first:
            output.timing = _timing(request, 0.0)
        return output

    def _output(self, request: Request, token_ids: list[int]) -> RequestOutput:
        return RequestOutput(
            request_id=request.request_id, token_ids=token_ids, num_cached_tokens=request.num_cached_tokens
        )

    def _finish(self, request: Request, token_ids: list[int], reason: FinishReason, error: str = "") -> RequestOutput:
        was_running = request.status is RequestStatus.RUNNING
        request.status = RequestStatus.FINISHED
        if was_running:
            self._leave_batch(request)
        elif request not in self._suspects:
            self.policy.discard(request)
        if request in self._suspects:
            self._suspects.remove(request)
        del self.requests[request.request_id]
        output = self._output(request, token_ids)
        output.finish_reason = reason
        output.error = error
        output.timing = _timing(request, self.clock())
        return output

    def _leave_batch(self, request: Request) -> None:
        """Give back a running request's row and blocks."""
        self.running.remove(request)
        self._free_rows.append(request.row)
        self.kv.free(request)
        request.row = -1

    # ------------------------------------------------------------------ what can be seen from outside

    def take_stats(self, num_tokens: int, seconds: float) -> EngineStats:
        """The state after a step, and what was counted since the last call."""
        counters, self._counters = self._counters, dict.fromkeys(self._counters, 0)
        return EngineStats(
            num_running=len(self.running),
            num_waiting=len(self.requests) - len(self.running),
            kv_cache_usage=self.kv.usage,
            kv_cache_retained=self.kv.retained,
            step_tokens=num_tokens,
            step_seconds=seconds,
            **counters,
        )


def _timing(request: Request, finished_at: float) -> RequestTiming:
    return RequestTiming(request.arrived_at, request.scheduled_at, request.first_token_at, finished_at)
