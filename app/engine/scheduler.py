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

from ..core.request import FinishReason, Request, RequestStatus
from ..core.step import ModelRunnerOutput, NewRequest, SchedulerOutput
from ..core.wire import RequestOutput
from ..fairness.policy import SharePolicy
from .chunk_pacer import ChunkPacer
from .kv_cache import KVCache
from .requests import Clock, RequestBatch
from .speculation import Speculation

log = logging.getLogger(__name__)


class Scheduler(RequestBatch):
    """Plans steps.

    `schedule` and `update` alternate, but `schedule` may run one step ahead (docs/architecture.md#overlap): then the
    tokens of the step in flight are counted (`num_in_flight`) although their ids are not known.
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
        whole_media: bool = False,
        speculation: Speculation | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(kv, policy, max_num_seqs, max_model_len, chunked_prefill, clock)
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("every running request must get a token in each step")
        self.pacer = pacer
        self.max_num_batched_tokens = self._largest_step = max_num_batched_tokens
        self.whole_media = whole_media
        self.step_sizes = step_sizes
        self.speculation = speculation

    def expected_seconds(self, step: SchedulerOutput) -> float:
        """How long a step will take, by what those before took."""
        return self.pacer.seconds(*step.decodes_and_prompt_tokens)

    @property
    def waits_for_tokens(self) -> bool:
        """Whether the next step is better planned when the one in flight has given its tokens, since drafts go on
        from these. Rows with drafts would have no part in it now, and the others would part from them for good."""
        if self.speculation is None or self._suspects or len(self.running) > self.speculation.most_rows:
            return False
        if not any(request.num_in_flight for request in self.running):
            return False
        if any(request.num_drafts for request in self.running):
            return True
        return self._all_generate and self.speculation.is_worth_waiting(self.running)

    @property
    def _all_generate(self) -> bool:
        """Whether the next step has no prompts: nobody computes one, and nobody can be admitted."""
        if self._free_rows and len(self.requests) > len(self.running):
            return False
        return all(request.num_missing <= 1 for request in self.running)

    def schedule(self) -> SchedulerOutput | None:
        """Plan the next step; None if there is nothing to compute now."""
        now = self.clock()
        self.kv.begin_step(now, self.pacer.seconds(0, 1))
        self.policy.begin_step(now, self.running, self.num_rows)
        step = self._plan_alone(self._suspects[0]) if self._suspects else self._plan_for_all()
        if not step.rows:
            return None
        if copies := self.kv.take_copies():
            step.copies = copies
            self._counters["num_blocks_out"] += sum(len(of_group.out) for of_group in copies)
            self._counters["num_blocks_in"] += sum(len(of_group.into) for of_group in copies)
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
        drafts = self._drafts(participants)
        room = self._largest_step - num_decodes
        prompt_budget, room = self._schedule_running(step, wanted, prompt_budget, room, drafts)
        has_preempted = len(self.running) < num_running  # then memory is what is short
        if self._free_rows and not has_preempted:
            self._schedule_waiting(step, prompt_budget, room)
        return step

    def _prompt_budget(self, num_decodes: int) -> int:
        """Most prompt tokens for a step with that many decodes, such that a full step has one of the worker's sizes."""
        budget = min(self.policy.prompt_tokens(num_decodes), self.max_num_batched_tokens - num_decodes)
        fitting = bisect_right(self.step_sizes, num_decodes + budget) - 1
        if fitting >= 0 and self.step_sizes[fitting] > num_decodes:
            return self.step_sizes[fitting] - num_decodes
        return budget

    def _drafts(self, participants: list[Request]) -> dict[str, list[int]]:
        """Guesses of what these requests generate behind their last tokens, by their ids; see `app.core.step`."""
        if self.speculation is None or len(participants) > self.speculation.most_rows:
            return {}
        if not self._all_generate:
            return {}
        if any(request.num_in_flight for request in participants):
            return {}
        drafts = {}
        # Nobody is preempted for guesses: every request can have another block without them.
        left = min((pool.num_available for pool in self.kv.pools), default=0) - len(participants)
        for name, guesses in self.speculation.choose(participants).items():
            num_tokens = len(self.requests[name].token_ids)
            left -= self.kv.num_blocks(num_tokens + len(guesses)) - self.kv.num_blocks(num_tokens)
            if left < 0:
                break
            drafts[name] = guesses
        return drafts

    def _schedule_running(
        self,
        step: SchedulerOutput,
        wanted: list[tuple[Request, int]],
        prompt_budget: int,
        room: int,
        drafts: dict[str, list[int]],
    ) -> tuple[int, int]:
        """Give running requests the tokens that they want; returns what is left of the budget for prompts, and of
        the worker's room for them."""
        for request, count in wanted:
            if request.row < 0:  # preempted for those before it, as are all behind it
                break
            if count > 1:
                count = self.policy.take(request, min(count, prompt_budget))
                count = self._uncut(request, request.num_computed_tokens, count, room)
                prompt_budget, room = max(0, prompt_budget - count), room - count
            guesses = drafts.get(request.request_id, [])
            if count > 0 and self._grow(request, count + len(guesses), step, self._last_running):
                self._enter(request, count, step, guesses)
        return prompt_budget, room

    def _uncut(self, request: Request, start: int, count: int, room: int) -> int:
        """So many of a request's tokens from `start` on, or more or fewer, at most `room`: they are not to end within a
        medium whose tokens see each other."""
        if not self.whole_media:
            return count
        for run in (run for one in request.extras.placed for run in one.runs):
            if run.start < start + count < run.end:
                whole = run.end - start
                return whole if whole <= room else max(0, run.start - start)
        return count

    def _last_running(self) -> Request:
        return self.running[-1]

    def _grow(self, request: Request, count: int, step: SchedulerOutput, next_victim: Callable[[], Request]) -> bool:
        """Make the block tables long enough for `count` more tokens; False if the request had to be preempted.

        next_victim: the running request that is to be preempted next; it has no part in the step yet.
        """
        num_tokens = request.num_computed_tokens + count
        if num_tokens <= request.num_slots:
            return True
        while (appended := self.kv.grow(request, num_tokens)) is None:
            victim = next_victim()
            self._preempt(victim)
            if victim is request:
                return False
        if appended:
            step.new_blocks.append((request.row, appended))
        return True

    def _schedule_waiting(self, step: SchedulerOutput, prompt_budget: int, room: int) -> None:
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
            num_to_read = self._num_to_read(request)
            if num_to_read > prompt_budget and step.new_requests:  # an encoder reads an input as a whole
                break
            if count > prompt_budget:
                if self.chunked_prefill:
                    count = prompt_budget
                elif step.new_requests:
                    break
            count = self._uncut(request, num_cached, count, room)
            if not count or not self.kv.has_room(request, num_cached, promised):
                break
            self.policy.pop(request)
            num_copied = self._admit(request, num_cached, count, step)
            prompt_budget -= count + num_to_read + self._as_tokens(num_copied)
            room -= count
            promised = [sum(both) for both in zip(promised, self.kv.promised([request]), strict=True)]
        for request in deferred:
            self.policy.put_back(request)

    def _num_to_read(self, request: Request) -> int:
        """Places of its input that encoders read in the step in which a request is admitted.

        To lay a text along a sound, the sound is read once more, whatever is kept of it.
        """
        once_more = request.num_source_tokens if request.sampling.alignment is not None else 0
        return self.kv.num_to_encode(request) + once_more

    def _as_tokens(self, num_copied: int) -> int:
        """How many tokens could be computed in the time that it takes to copy so many from host memory."""
        seconds_of_token = self.pacer.seconds(0, 1)
        return int(self.kv.seconds_to_copy(num_copied) / seconds_of_token) if num_copied and seconds_of_token else 0

    def _plan_alone(self, request: Request) -> SchedulerOutput:
        """Plan a step for one request, whatever the others hold."""
        step = SchedulerOutput()
        is_running = request.status is RequestStatus.RUNNING
        missing = request.num_missing if is_running else len(request.token_ids)
        count = min(missing, self.max_num_batched_tokens) if self.chunked_prefill else missing
        count = self._uncut(request, request.num_computed_tokens, count, self._largest_step)
        if count == 0 or request.num_in_flight:  # its token will tell whether it still is a suspect
            return step
        others = [other for other in self.running if other is not request]
        if is_running:
            self._grow(request, count, step, others.pop)
            self._enter(request, count, step)
            return step
        while not self._free_rows or not self.kv.has_room(request):
            self._preempt(others.pop())
        self._admit(request, 0, count, step)
        return step

    def _admit(self, request: Request, num_cached: int, count: int, step: SchedulerOutput) -> int:
        """Give a request a row and blocks, and enter its first `count` tokens behind the cached ones into the step.

        Returns how many of the cached tokens come from host memory.
        """
        num_to_read, is_encoded = self._num_to_read(request), self.kv.num_to_encode(request) == 0
        step.num_source_tokens += num_to_read
        if request.status is RequestStatus.WAITING:
            request.scheduled_at = self.clock()
            request.num_cached_tokens = num_cached
            self.policy.charge(request, request.num_prompt_tokens - num_cached + num_to_read, 0)
        if self.kv.prefix_caching:
            self._counters["prefix_cache_queries"] += len(request.token_ids)
            self._counters["prefix_cache_hits"] += num_cached
        request.status = RequestStatus.RUNNING
        request.row = self._free_rows.pop()
        request.num_admitted_tokens = len(request.token_ids)
        num_copied = self.kv.start(request, num_cached)
        self._counters["host_cache_hits"] += num_copied
        self.kv.grow(request, num_cached + count)
        insort(self.running, request, key=self.policy.order)
        step.new_requests.append(
            NewRequest(
                row=request.row,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                num_computed_tokens=num_cached,
                block_ids=[list(table) for table in request.block_tables],
                cross_blocks=list(request.cross_blocks),
                is_encoded=is_encoded,
                snapshot=self.kv.snapshot_of(request, num_cached),
                num_prompt_logprobs=request.num_prompt_logprobs,
                sampling=request.sampling,
                extras=request.extras,
            )
        )
        self._enter(request, count, step)
        return num_copied

    def _enter(self, request: Request, count: int, step: SchedulerOutput, drafts: Sequence[int] = ()) -> None:
        """Enter `count` tokens of a request into the step, and drafts behind them."""
        step.rows.append(request.row)
        step.request_ids.append(request.request_id)
        step.num_scheduled_tokens.append(count + len(drafts))
        if drafts:
            step.drafts[request.row] = list(drafts)
            request.num_drafts = len(drafts)
        if snapshot := self.kv.make_snapshot(request, count):
            step.snapshots[request.row] = snapshot
        request.num_computed_tokens += count
        if request.num_computed_tokens == len(request.token_ids) + request.num_in_flight:
            request.num_in_flight += 1

    def update(self, step: SchedulerOutput, result: ModelRunnerOutput, seconds: float) -> list[RequestOutput]:
        """See `RequestBatch.update`."""
        if self.speculation is not None:
            self.speculation.observe(step, seconds)
        return super().update(step, result, seconds)

    def _count_drafts(self, request: Request, num_accepted: int) -> None:
        super()._count_drafts(request, num_accepted)
        if self.speculation is not None:
            self.speculation.learn(request, num_accepted)

    def _finish(self, request: Request, token_ids: list[int], reason: FinishReason, error: str = "") -> RequestOutput:
        if self.speculation is not None:
            self.speculation.end(request)
        return super()._finish(request, token_ids, reason, error)

    def shrink(self, step: SchedulerOutput) -> None:
        """Plan smaller steps than this from now on: it was too large for the memory. To be called after `recover`.

        Fewer tokens where prompts made it large, else fewer rows.
        """
        num_rows = len(self._free_rows)
        if step.num_tokens >= 2 * len(step.rows):
            self.max_num_batched_tokens = step.num_tokens // 2
        else:
            num_rows = len(step.rows) // 2
        # Every running request must get a token in each step.
        num_rows = max(1, min(num_rows, self.max_num_batched_tokens))
        if self.speculation is not None:
            self.speculation.shrink(self.max_num_batched_tokens)
        del self._free_rows[num_rows:]
        limits = (self.max_num_batched_tokens, num_rows)
        log.warning("out of memory: from now on up to %d tokens and %d requests in a step", *limits)
