"""Which requests take part in the next step, and with how many tokens.

There is one rule, and no phases: every step hands out a budget of tokens so that each request's
`num_computed_tokens` catches up with the tokens it has. A request that generates is one token behind, a new prompt
is all of its tokens behind; long prompts catch up in chunks. Prefix caching starts a request further ahead,
preemption sets it back to the start.
"""

import logging
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence

from app.core.request import FinishReason, Request, RequestStatus
from app.core.step import MAX_DRAFTS, NOTHING_ALLOWED, ModelRunnerOutput, NewRequest, SchedulerOutput
from app.core.wire import EngineStats, RequestOutput, RequestTiming
from app.engine.chunk_pacer import ChunkPacer
from app.engine.drafts import Proposer
from app.engine.kv_cache import KVCache
from app.fairness.policy import SharePolicy

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class Scheduler:
    """Owns every request from its arrival to its end.

    `schedule` and `update` alternate, but `schedule` may run one step ahead (docs/architecture.md#overlap): then the
    tokens of the step in flight are counted (`num_in_flight`) although their ids are not known. Since steps run in
    order, blocks and rows that are given back while a step is in flight can be given out again at once.
    """

    def __init__(
        self,
        kv: KVCache,
        pacer: ChunkPacer,
        policy: SharePolicy,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        step_sizes: Sequence[int] = (),
        chunked_prefill: bool = True,
        proposer: Proposer | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("every running request must get a token in each step")
        if not kv.holds(max_model_len):
            raise ValueError("the longest request must fit when it runs alone")
        self.kv = kv
        self.pacer = pacer
        self.policy = policy
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.step_sizes = step_sizes
        self.chunked_prefill = chunked_prefill
        self.proposer = proposer
        self.clock = clock

        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []  # in the policy's order: the last one is preempted first
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        # Of a failed step, or of an engine that died: each must run alone until it has given a token.
        self._suspects: list[Request] = []
        self._counters = dict.fromkeys(("prefix_cache_queries", "prefix_cache_hits", "num_preemptions"), 0)

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

    def expected_seconds(self, step: SchedulerOutput) -> float:
        """How long a step will take, by what those before took."""
        return self.pacer.seconds(*step.decodes_and_prompt_tokens)

    @property
    def suspect(self) -> str:
        """The request that the next step is for alone; empty if it is for all."""
        return self._suspects[0].request_id if self._suspects else ""

    # ------------------------------------------------------------------ before a step

    def schedule(self) -> SchedulerOutput | None:
        """Plan the next step; None if there is nothing to compute now."""
        self.policy.begin_step(self.clock(), self.running, len(self.running) + len(self._free_rows))
        step = self._plan_alone(self._suspects[0]) if self._suspects else self._plan_for_all()
        if not step.rows:
            return None
        self.policy.planned()
        return step

    def _plan_for_all(self) -> SchedulerOutput:
        self._make_room()
        step = self._plan(self.policy.participants(self.running, self._has_room_for))
        if not step.rows and self.policy.cancel_yield():
            step = self._plan(self.running)
        return step

    def _make_room(self) -> None:
        """Preempt running requests in favour of the next one, as far as the policy says so."""
        request = self.policy.first()
        if request is None or request.num_in_flight:
            return
        needed = self.kv.num_blocks(len(request.token_ids))
        while not self._free_rows or not self.kv.has_room(request):
            victim = self.policy.victim(self.running, request, needed)
            if victim is None:
                return
            self._preempt(victim)

    def _has_room_for(self, request: Request) -> bool:
        return self.kv.has_room(request, promised=self.kv.promised(self.running))

    def _plan(self, participants: list[Request]) -> SchedulerOutput:
        """Plan a step for these running requests, and for waiting ones."""
        step = SchedulerOutput()
        wanted = [(request, request.num_missing) for request in participants]
        num_decodes = sum(count == 1 for _, count in wanted)
        prompt_budget = self._prompt_budget(num_decodes)  # on top of decodes
        self.policy.divide(prompt_budget)
        num_running = len(self.running)
        prompt_budget = self._schedule_running(step, wanted, prompt_budget)
        has_preempted = len(self.running) < num_running  # then memory is what is short
        if self._free_rows and not has_preempted:
            self._schedule_waiting(step, prompt_budget)
        return step

    def _prompt_budget(self, num_decodes: int) -> int:
        """Most prompt tokens for a step with that many decodes, such that a full step has one of the worker's sizes."""
        budget = min(self.policy.prompt_tokens(num_decodes), self.max_num_batched_tokens - num_decodes)
        fitting = bisect_right(self.step_sizes, num_decodes + budget) - 1
        if fitting >= 0 and self.step_sizes[fitting] > num_decodes:
            return self.step_sizes[fitting] - num_decodes
        return budget

    def _schedule_running(self, step: SchedulerOutput, wanted: list[tuple[Request, int]], prompt_budget: int) -> int:
        """Give running requests the tokens that they want; returns what is left of the budget for prompts."""
        num_drafts = 0 if self.proposer is None else MAX_DRAFTS
        for request, count in wanted:
            if request.row < 0:  # preempted for those before it, as are all behind it
                break
            if count > 1:
                count = self.policy.take(request, min(count, prompt_budget))
                prompt_budget -= count
            drafts = self._draft(request, min(prompt_budget, num_drafts)) if count == 1 and num_drafts else []
            if count > 0 and self._grow(request, count + len(drafts), step):
                self._enter(request, count, step, drafts)
                prompt_budget -= len(drafts)
                num_drafts -= len(drafts)
        return prompt_budget

    def _draft(self, request: Request, most: int) -> list[int]:
        """Guesses of what a request generates behind the next token, if there may be any.

        Its last token has to be known, and what it samples must not depend on the tokens just before.
        """
        if self.proposer is None or request.num_in_flight or request.sampling.looks_back:
            return []
        most = min(most, request.max_num_tokens - len(request.token_ids) - 1)
        return self.proposer.propose(request.token_ids, most)[:most] if most > 0 else []

    def _grow(self, request: Request, count: int, step: SchedulerOutput) -> bool:
        """Make the block tables long enough for `count` more tokens; False if the request had to be preempted."""
        while (appended := self.kv.grow(request, request.num_computed_tokens + count)) is None:
            # It has no part in this step yet, since running requests are planned in this order.
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        if appended:
            step.new_blocks.append((request.row, appended))
        return True

    def _schedule_waiting(self, step: SchedulerOutput, prompt_budget: int) -> None:
        """Admit waiting requests in order, as far as rows, budget and blocks go."""
        promised = self.kv.promised(self.running)
        deferred: list[Request] = []
        while prompt_budget > 0 and len(self._free_rows) > len(deferred) and (request := self.policy.first()):
            num_cached = 0 if request.num_in_flight else self.kv.match(request)
            # Preempted just now, or others are about to compute what it needs.
            if request.num_in_flight or self.kv.next_is_being_computed(request, num_cached):
                self.policy.pop(request)
                deferred.append(request)
                continue
            count = len(request.token_ids) - num_cached
            if count > prompt_budget:
                if self.chunked_prefill:
                    count = prompt_budget
                elif step.rows:
                    break
            if not self.kv.has_room(request, num_cached, promised):
                break
            self.policy.pop(request)
            self._admit(request, num_cached, count, step)
            prompt_budget -= count
            promised = [sum(both) for both in zip(promised, self.kv.promised([request]), strict=True)]
        for request in deferred:
            self.policy.put_back(request)

    def _plan_alone(self, request: Request) -> SchedulerOutput:
        """Plan a step for one request, whatever the others hold."""
        step = SchedulerOutput()
        is_running = request.status is RequestStatus.RUNNING
        missing = request.num_missing if is_running else len(request.token_ids)
        count = min(missing, self.max_num_batched_tokens)
        if count == 0 or request.num_in_flight:  # its token will tell whether it still is a suspect
            return step
        others = [other for other in self.running if other is not request]
        if is_running:
            while (appended := self.kv.grow(request, request.num_computed_tokens + count)) is None:
                self._preempt(others.pop())
            if appended:
                step.new_blocks.append((request.row, appended))
            self._enter(request, count, step)
            return step
        while not self._free_rows or not self.kv.has_room(request):
            self._preempt(others.pop())
        self._admit(request, 0, count, step)
        return step

    def _admit(self, request: Request, num_cached: int, count: int, step: SchedulerOutput) -> None:
        """Give a request a row and blocks, and enter its first `count` tokens behind the cached ones into the step."""
        if request.status is RequestStatus.WAITING:
            request.scheduled_at = self.clock()
            request.num_cached_tokens = num_cached
            self.policy.charge(request, request.num_prompt_tokens - num_cached, 0)
        if self.kv.prefix_caching:
            self._counters["prefix_cache_queries"] += len(request.token_ids)
            self._counters["prefix_cache_hits"] += num_cached
        request.status = RequestStatus.RUNNING
        request.row = self._free_rows.pop()
        request.num_admitted_tokens = len(request.token_ids)
        self.kv.start(request, num_cached)
        self.kv.grow(request, num_cached + count)
        insort(self.running, request, key=self.policy.order)
        step.new_requests.append(
            NewRequest(
                row=request.row,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                num_computed_tokens=num_cached,
                block_ids=[list(table) for table in request.block_tables],
                num_prompt_logprobs=request.num_prompt_logprobs,
                sampling=request.sampling,
                extras=request.extras,
            )
        )
        self._enter(request, count, step)

    def _enter(self, request: Request, count: int, step: SchedulerOutput, drafts: Sequence[int] = ()) -> None:
        """Enter `count` tokens of a request into the step, and drafts behind them."""
        step.rows.append(request.row)
        step.request_ids.append(request.request_id)
        step.num_scheduled_tokens.append(count + len(drafts))
        if drafts:
            step.drafts[request.row] = list(drafts)
            request.num_drafts = len(drafts)
        request.num_computed_tokens += count
        if request.num_computed_tokens == len(request.token_ids) + request.num_in_flight:
            request.num_in_flight += 1

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
        now = self.clock()
        for index, (request_id, tokens) in enumerate(zip(step.request_ids, result.token_ids, strict=True)):
            request = self.requests.get(request_id)
            if request is None:  # ended while the step ran
                continue
            prompt_logprobs = result.prompt_logprobs.get(index)
            if index in result.vectors:
                request.first_token_at = now
                output = self._finish(request, [], FinishReason.STOP)
                output.vector = result.vectors[index]
            elif not tokens:
                self.kv.commit(request)
                if not prompt_logprobs:
                    continue
                output = self._output(request, [])
            elif tokens[-1] < 0:
                output = self._fail(request, tokens[-1])
            else:
                output = self._take_tokens(request, tokens, now)
                if index in result.logprobs:
                    output.logprobs = result.logprobs[index][: len(output.token_ids)]
            if prompt_logprobs:
                output.prompt_logprobs = prompt_logprobs
                request.num_prompt_logprobs += len(prompt_logprobs)
            outputs.append(output)
        self.policy.observe(*step.decodes_and_prompt_tokens, seconds)
        return outputs

    def _fail(self, request: Request, fault: int) -> RequestOutput:
        """End a request for which no token can be sampled."""
        if fault == NOTHING_ALLOWED:
            reason = "no text matches the grammar, or none that is simple enough"
            output = self._finish(request, [], FinishReason.ERROR, reason)
            output.blames_request = True
            return output
        self.kv.forget()  # its blocks may hold no numbers either
        return self._finish(request, [], FinishReason.ERROR, "the model's output is not a number")

    def recover(self, step: SchedulerOutput, was_too_large: bool = False) -> list[RequestOutput]:
        """After a step that failed: end the request that is to blame, or run the step's requests apart to find it.

        None is to blame for a step that was too large for the memory, as long as it can be made smaller.

        No step may be in flight. What the failed one wrote is unknown, so everything is computed again.
        """
        suspects = [self.requests[name] for name in step.request_ids if name in self.requests]
        outputs = []
        if len(step.request_ids) == 1 and not (was_too_large and step.num_tokens > 1):
            outputs = [self._finish(r, [], FinishReason.ERROR, "the model failed on this request") for r in suspects]
        else:
            self._suspects += [request for request in suspects if request not in self._suspects]
        for request in self.running[::-1]:
            self._preempt(request)
        for request in self.requests.values():
            request.num_in_flight = request.num_drafts = 0
        self.policy.forget_planned()
        self.kv.forget()
        return outputs

    def shrink(self, step: SchedulerOutput) -> None:
        """Plan smaller steps than this from now on: it was too large for the memory. To be called after `recover`.

        Fewer tokens where prompts made it large, else fewer rows.
        """
        num_rows = len(self._free_rows)
        if step.num_tokens > 2 * len(step.rows):
            self.max_num_batched_tokens = step.num_tokens // 2
        else:
            num_rows = len(step.rows) // 2
        # Every running request must get a token in each step.
        num_rows = max(1, min(num_rows, self.max_num_batched_tokens))
        del self._free_rows[num_rows:]
        limits = (self.max_num_batched_tokens, num_rows)
        log.warning("out of memory: from now on up to %d tokens and %d requests in a step", *limits)

    def _take_tokens(self, request: Request, tokens: list[int], now: float) -> RequestOutput:
        """Append sampled tokens, as far as none of them ends the request."""
        request.num_in_flight -= 1
        request.num_drafts = 0
        if request.status is RequestStatus.RUNNING:
            request.num_computed_tokens += len(tokens) - 1
        if request in self._suspects:
            self._suspects.remove(request)
        if request.sampling.max_tokens == 0:
            return self._finish(request, [], FinishReason.LENGTH)
        is_first = request.first_token_at == 0.0
        if is_first:
            request.first_token_at = now
        reason = None
        for count, token in enumerate(tokens, 1):
            request.token_ids.append(token)
            if token in request.sampling.stop_token_ids:
                reason = FinishReason.STOP
            elif len(request.token_ids) >= request.max_num_tokens:
                reason = FinishReason.LENGTH
            if reason:
                tokens = tokens[:count]
                break
        self.policy.charge(request, 0, len(tokens))
        self.kv.commit(request)
        if reason:
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
            step_tokens=num_tokens,
            step_seconds=seconds,
            **counters,
        )


def _timing(request: Request, finished_at: float) -> RequestTiming:
    return RequestTiming(request.arrived_at, request.scheduled_at, request.first_token_at, finished_at)
