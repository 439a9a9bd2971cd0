"""The scheduler under random traffic, without a model: what must hold after every step, whatever happens."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count as counting

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import FinishReason, Request, RequestStatus
from app.core.sampling import SamplingParams
from app.core.step import NOT_A_NUMBER, HostMemory, KVGroup, ModelRunnerOutput, RowStates, SchedulerOutput
from app.core.wire import RequestOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.engine.speculation import Speculation
from app.fairness.alone import Alone
from app.fairness.fair_shares import FairShares

BLOCK_SIZE = 4
NUM_BLOCKS = 12
NUM_WINDOW_BLOCKS = 9
MAX_MODEL_LEN = NUM_BLOCKS * BLOCK_SIZE
MAX_NUM_SEQS = 4
BUDGET = 10
EOS = 0


def make_scheduler(
    prefix_caching: bool = True,
    has_tenants: bool = True,
    window: int | None = None,
    proposes: bool = False,
    snapshots: int | None = None,
    attends: bool = True,
    places: int = 0,
) -> Scheduler:
    """With a window, there is a second KV group beside the full one. With a number of snapshots, rows keep states.

    `places`: for blocks of each group in host memory. Time goes on by a second for each step.
    """
    pacer = ChunkPacer(1.0, BLOCK_SIZE, BUDGET)
    groups = [KVGroup(NUM_BLOCKS)] + ([KVGroup(NUM_WINDOW_BLOCKS, window)] if window else [])
    states = None if snapshots is None else RowStates(snapshots)
    groups = groups if attends else []
    host = HostMemory((places,) * len(groups), seconds_of_block=0.001) if places else None
    return Scheduler(
        KVCache(groups, BLOCK_SIZE, BUDGET, prefix_caching, states, host=host),
        pacer,
        FairShares(pacer, NUM_BLOCKS) if has_tenants else Alone(pacer),
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=BUDGET,
        max_model_len=MAX_MODEL_LEN,
        speculation=Scripted() if proposes else None,
        clock=partial(next, map(float, counting())),
    )


def next_token(tokens: list[int]) -> int:
    """A model: its next token is a function of all tokens before. About one in eleven ends the text."""
    return hash(tuple(tokens)) % 11


class Scripted(Speculation):
    """Drafts that are right, or wrong from some place on; which, the text decides, and whether they are waited for."""

    def __init__(self, always_waits: bool = False) -> None:
        self._always_waits, self.most_rows = always_waits, 32

    def learn(self, request: Request, num_right: int) -> None:
        """Nothing is learnt."""

    def end(self, request: Request) -> None:
        """Nothing is kept."""

    def choose(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        chosen, left = {}, BUDGET - len(requests)
        for request in requests:
            most = min(3, left, request.max_num_tokens - len(request.token_ids) - 1)
            tokens = list(request.token_ids)
            for _ in range(most):
                tokens.append(next_token(tokens))
            drafts = tokens[len(request.token_ids) :]
            wrong_from = hash(tuple(request.token_ids)) % 5
            drafts = drafts[:wrong_from] + [token + 1 for token in drafts[wrong_from:]]
            if drafts:
                chosen[request.request_id] = drafts
                left -= len(drafts)
        return chosen

    def is_worth_waiting(self, requests: Sequence[Request]) -> bool:
        return self._always_waits or sum(map(len, (request.token_ids for request in requests))) % 2 == 0

    def observe(self, step: SchedulerOutput, seconds: float) -> None:
        assert seconds > 0
        if step.drafts:
            assert len(step.rows) + sum(map(len, step.drafts.values())) == step.num_tokens


@dataclass
class Device:
    """A worker that checks, as a real one could not, that it is told the truth about every row."""

    window: int | None = None
    """Of the second KV group, if there is one."""
    has_states: bool = False
    rows: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[list[int]]] = field(default_factory=dict)
    cache: dict[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)
    """(group, block, offset) to all tokens up to the one whose K/V stands there: K/V depends on its whole past."""
    states: dict[int, list[int]] = field(default_factory=dict)
    """Row to all tokens that its state has seen."""
    snapshots: dict[int, list[int]] = field(default_factory=dict)
    places: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """(group, place in host memory) to what was copied there: by offset, as in `cache`."""

    def run(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Execute a step."""
        self.copy(step)
        self.take(step)
        return self.compute(step)

    def copy(self, step: SchedulerOutput, is_right: bool = True) -> None:
        for group, copies in enumerate(step.copies):
            places = [place for _, place in copies.out]
            assert len(set(places)) == len(places)
            assert len({block for _, block in copies.into}) == len(copies.into)
            for block, place in copies.out:
                held = {at: self.cache.get((group, block, at), ()) for at in range(BLOCK_SIZE)}
                self.places[group, place] = held if is_right else {}
            for place, block in copies.into:
                for at in range(BLOCK_SIZE):
                    self.cache[group, block, at] = self.places[group, place].get(at, ()) if is_right else ()

    def take(self, step: SchedulerOutput) -> None:
        for new in step.new_requests:
            self.rows[new.row] = list(new.token_ids)
            self.computed[new.row] = new.num_computed_tokens
            self.tables[new.row] = [list(table) for table in new.block_ids]
            seen = [] if new.snapshot is None else self.snapshots[new.snapshot]
            self.states[new.row] = list(seen)
        for row, blocks in step.new_blocks:
            for table, appended in zip(self.tables[row], blocks, strict=True):
                table += appended

    def compute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        sampled = []
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            drafts = step.drafts.get(row, [])
            tokens, start = self.rows[row], self.computed[row]
            text, end = tokens + drafts, start + count
            for position in range(start, end):
                self._write(row, position, tuple(text[: position + 1]))
            for position in range(start, end):
                self._read(row, position, text)
            if self.has_states:
                assert self.states[row] == text[:start]
                self.states[row] += text[start:end]
                if row in step.snapshots:
                    num_tokens, place = step.snapshots[row]
                    assert start < num_tokens <= end
                    self.snapshots[place] = text[:num_tokens]
            self.computed[row] = end - len(drafts)
            new: list[int] = []
            if end == len(text):
                new = [next_token(tokens)]
                while len(new) <= len(drafts) and drafts[len(new) - 1] == new[-1]:
                    new.append(next_token(tokens + new))
                self.computed[row] += len(new) - 1
                tokens += new
            sampled.append(new)
        return ModelRunnerOutput(sampled)

    def fail(self, step: SchedulerOutput) -> None:
        """Fail a step: write rubbish wherever it would have written."""
        self.copy(step, is_right=False)
        self.take(step)
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            for position in range(self.computed[row], self.computed[row] + count):
                self._write(row, position, ())
            self.computed[row] += count
            self.states[row] = [-1]
            if row in step.snapshots:
                self.snapshots[step.snapshots[row][1]] = [-1]

    def _write(self, row: int, position: int, text: tuple[int, ...]) -> None:
        for group, table in enumerate(self.tables[row]):
            self.cache[group, table[position // BLOCK_SIZE], position % BLOCK_SIZE] = text

    def _read(self, row: int, position: int, text: list[int]) -> None:
        """Read what attention at a position reads: all of its past, or the part in the window."""
        for group, table in enumerate(self.tables[row]):
            first = max(0, position + 1 - self.window) if group and self.window else 0
            for seen in range(first, position + 1):
                held = self.cache[group, table[seen // BLOCK_SIZE], seen % BLOCK_SIZE]
                assert held == tuple(text[: seen + 1])


def check_invariants(scheduler: Scheduler, step: SchedulerOutput | None, is_cache_whole: bool) -> None:
    for group, pool in enumerate(scheduler.kv.pools):
        holders = Counter(
            block
            for request in scheduler.running
            for block in request.block_tables[group][request.first_blocks[group] :]
        )
        assert len(holders) == pool.num_used
        assert pool.num_used + pool.num_cached + pool.num_retained + len(pool._free) == pool.num_blocks
        assert pool.num_retained <= pool.num_blocks / 2
        for block, count in holders.items():
            assert pool._references[block] == count
            assert count == 1 or block in pool.prefix_cache or not is_cache_whole
    for tier in (group.host for group in scheduler.kv._groups if group.host):
        places = tier.pool
        assert step is None or places.num_used == 0  # what a step copies is known, and then nothing is held
        assert places.num_used + places.num_cached + places.num_retained + len(places._free) == places.num_blocks
    assert len(scheduler.running) <= MAX_NUM_SEQS
    assert len({request.row for request in scheduler.running}) == len(scheduler.running)
    for request in scheduler.running:
        assert len({len(table) for table in request.block_tables}) <= 1
    for request in scheduler.requests.values():
        assert (request.status is RequestStatus.RUNNING) == bool(request.block_tables) or not scheduler.kv.pools
    if step:
        assert step.num_tokens <= BUDGET
        assert len(set(step.rows)) == len(step.rows)


@dataclass
class Loop:
    """The engine's step loop around a device, plain or overlapped."""

    scheduler: Scheduler
    device: Device
    overlap: bool
    outputs: dict[str, list[RequestOutput]] = field(default_factory=dict)
    to_blame: set[str] = field(default_factory=set)
    in_flight: tuple[SchedulerOutput, ModelRunnerOutput | None] | None = None

    def add(self, request: Request) -> None:
        self.outputs[request.request_id] = []
        self.scheduler.add(request)

    def take(self, news: list[RequestOutput]) -> None:
        for output in news:
            self.outputs[output.request_id].append(output)

    def step(self, how: str = "well") -> None:
        plan = None if self.overlap and self.scheduler.waits_for_tokens else self.scheduler.schedule()
        check_invariants(self.scheduler, plan, not self.to_blame)
        previous, self.in_flight = self.in_flight, (plan, self._submit(plan, how)) if plan else None
        if not self.overlap:
            previous, self.in_flight = self.in_flight, None
        if previous:
            self._finish(*previous)
        check_invariants(self.scheduler, None, not self.to_blame)

    def _submit(self, plan: SchedulerOutput, how: str) -> ModelRunnerOutput | None:
        if how == "fails" or (self.in_flight and self.in_flight[1] is None):  # a step behind a failed one reads rubbish
            return self.device.fail(plan)
        result = self.device.run(plan)
        sampling = [index for index, tokens in enumerate(result.token_ids) if tokens]
        if how == "no number" and sampling:
            result.token_ids[sampling[0]][-1] = NOT_A_NUMBER
            self.to_blame.add(plan.request_ids[sampling[0]])
        return result

    def _finish(self, plan: SchedulerOutput, result: ModelRunnerOutput | None) -> None:
        if result is None:
            self.in_flight = None
            if len(plan.request_ids) == 1:
                self.to_blame.update(plan.request_ids)
            self.take(self.scheduler.recover(plan))
        else:
            self.take(self.scheduler.update(plan, result, seconds=0.01))

    def finish_all(self) -> None:
        for _ in range(2000):
            if not self.scheduler.has_requests and self.in_flight is None:
                break
            self.step()
        assert not self.scheduler.has_requests, "a request starved"
        assert self.scheduler.kv.usage == 0


prompts = st.one_of(
    st.lists(st.integers(1, 2), min_size=1, max_size=MAX_MODEL_LEN),
    st.integers(1, MAX_MODEL_LEN).map(lambda length: ([1, 2, 2] * MAX_MODEL_LEN)[:length]),  # to share prefixes
)
retentions = st.sampled_from([0.0, 0.0, 3.0, 1000.0])
requests = st.tuples(prompts, st.integers(0, 30), st.integers(0, 2), st.sampled_from("aab"), retentions)
# A word is a step of the engine: it goes well, or fails, or gives one request no number. A number aborts one of the
# requests; the rest are arrivals.
steps = st.sampled_from(["well", "well", "well", "fails", "no number"])
events = st.lists(st.one_of(requests, steps, steps, st.integers(0, 20)), max_size=60)


@given(
    events=events,
    overlap=st.booleans(),
    prefix_caching=st.booleans(),
    has_tenants=st.booleans(),
    window=st.sampled_from([None, 1, 6]),
    proposes=st.booleans(),
    snapshots=st.sampled_from([None, None, None, 0, 1, 3]),
    attends=st.booleans(),
    places=st.sampled_from([0, 0, 1, 4, 30]),
)
@settings(max_examples=600, deadline=None)
def test_random_traffic(
    events: list[object],
    overlap: bool,
    prefix_caching: bool,
    has_tenants: bool,
    window: int | None,
    proposes: bool,
    snapshots: int | None,
    attends: bool,
    places: int,
) -> None:
    has_states = snapshots is not None
    proposes, attends = proposes and not has_states, attends or not has_states
    scheduler = make_scheduler(prefix_caching, has_tenants, window, proposes, snapshots, attends, places)
    loop = Loop(scheduler, Device(window, has_states), overlap)
    arrived: dict[str, Request] = {}
    for event in events:
        if isinstance(event, str):
            loop.step(event)
        elif isinstance(event, int):
            loop.take(scheduler.abort(str(event)))
        else:
            prompt, max_tokens, priority, tenant, retention = event  # type: ignore[misc]
            request = Request(
                request_id=str(len(arrived)),
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
                sampling=SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=frozenset([EOS])),
                arrived_at=float(len(arrived)),
                priority=priority,
                cache_retention=retention,
                tenant=tenant,
                weight={"a": 1.0, "b": 2.5}[tenant],
            )
            arrived[request.request_id] = request
            loop.add(request)
    loop.finish_all()
    for request_id, request in arrived.items():
        news = loop.outputs[request_id]
        assert [output.finish_reason is not None for output in news] == [False] * (len(news) - 1) + [True]
        generated = [token for output in news for token in output.token_ids]
        assert generated == expected(request)[: len(generated)]
        if news[-1].finish_reason is FinishReason.ERROR:
            assert request_id in loop.to_blame
        elif news[-1].finish_reason is not FinishReason.ABORT:
            assert generated == expected(request)


def expected(request: Request) -> list[int]:
    """The tokens that the request gets when it runs alone."""
    tokens = list(request.token_ids[: request.num_prompt_tokens])
    generated: list[int] = []
    while len(generated) < request.sampling.max_tokens and len(tokens) < MAX_MODEL_LEN + (not generated):
        tokens.append(next_token(tokens))
        generated.append(tokens[-1])
        if tokens[-1] == EOS:
            break
    return generated


@given(
    rng=st.randoms(use_true_random=False),
    overlap=st.booleans(),
    has_tenants=st.booleans(),
    window=st.sampled_from([None, None, 6]),
    places=st.sampled_from([3, 10, 60]),
)
@settings(max_examples=60, deadline=None)
def test_conversations_that_go_on_after_others(
    rng: random.Random, overlap: bool, has_tenants: bool, window: int | None, places: int
) -> None:
    """Four of them do not fit the memory together; steps fail now and then."""
    scheduler = make_scheduler(True, has_tenants, window, places=places)
    loop = Loop(scheduler, Device(window), overlap)
    said: list[list[int]] = [[number] * 5 for number in range(1, 5)]
    for turn in range(25):
        number = rng.randrange(len(said))
        if len(said[number]) > MAX_MODEL_LEN - 20:
            said[number] = [turn + 10] * 9
        request = Request(
            request_id=str(turn),
            token_ids=list(said[number]),
            num_prompt_tokens=len(said[number]),
            sampling=SamplingParams(max_tokens=6, seed=0),
            arrived_at=float(turn),
            cache_retention=rng.choice([0.0, 4.0, 1000.0]),
            tenant="ab"[number % 2],
        )
        loop.add(request)
        for _ in range(rng.randrange(12)):
            loop.step(rng.choice(["well"] * 60 + ["fails"]))
        if rng.random() < 0.1:
            loop.take(scheduler.abort(str(turn)))
        said[number] = request.token_ids + [turn % 5] * rng.randrange(1, 6)
    loop.finish_all()
    for name, news in loop.outputs.items():
        assert news[-1].finish_reason in (FinishReason.LENGTH, FinishReason.ABORT) or name in loop.to_blame


def run_until_idle(scheduler: Scheduler) -> list[SchedulerOutput]:
    device, steps = Device(), []
    while step := scheduler.schedule():
        steps.append(step)
        scheduler.update(step, device.run(step), seconds=0.01)
    return steps


def add(scheduler: Scheduler, name: str, prompt: list[int], max_tokens: int = 1, **options: object) -> Request:
    request = Request(
        request_id=name,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, seed=0),
        arrived_at=float(len(scheduler.requests)),
        **options,  # type: ignore[arg-type]
    )
    scheduler.add(request)
    return request


def test_choices_of_one_prompt_share_its_blocks() -> None:
    scheduler, prompt = make_scheduler(), [1, 2] * 6
    for name in "abc":
        add(scheduler, name, prompt, max_tokens=2)
    steps = run_until_idle(scheduler)
    computed = Counter[str]()
    for step in steps:
        computed.update(dict(zip(step.request_ids, step.num_scheduled_tokens, strict=True)))
    # Once in full; then two times the last block, of which one token at least has to be computed. One decode each.
    assert sorted(computed.values()) == [5, 5, 13]


@pytest.mark.parametrize("attends", [True, False])
def test_a_prompt_and_the_next_turn_begin_with_the_state_of_the_last(attends: bool) -> None:
    scheduler, prompt = make_scheduler(snapshots=4, attends=attends), [1, 2] * 6
    for name in "abc":
        add(scheduler, name, prompt, max_tokens=2)
    first = dict(scheduler.requests)
    device = Device(has_states=True)

    def run() -> None:
        while step := scheduler.schedule():
            scheduler.update(step, device.run(step), seconds=0.01)  # the device checks the states

    run()
    assert [first[name].num_cached_tokens for name in "abc"] == [0, 8, 8]
    turn = add(scheduler, "turn", first["a"].token_ids + [3] * 9)
    other = add(scheduler, "other", prompt[:4] + [3] * 9)
    run()
    assert (turn.num_cached_tokens, other.num_cached_tokens) == (8, 0)
    for index in range(3):  # what was used last is kept longest
        add(scheduler, f"{index}", [3 + index] * 9)
        run()
        again = add(scheduler, f"again {index}", prompt)
        run()
        assert again.num_cached_tokens == 8


def test_salts_keep_prefixes_apart() -> None:
    scheduler, prompt = make_scheduler(), [1] * 9
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        add(scheduler, name, prompt, cache_salt=salt)
    requests = dict(scheduler.requests)
    run_until_idle(scheduler)
    assert [requests[name].num_cached_tokens for name in "abc"] == [0, 0, 8]


def test_lower_priority_is_preempted_and_its_text_is_whole() -> None:
    scheduler = make_scheduler(prefix_caching=False)
    add(scheduler, "low", [1] * 20, max_tokens=20, priority=1)
    add(scheduler, "high", [2] * 20, max_tokens=20, priority=0)
    device, preempted, texts = Device(), 0, {"low": 0, "high": 0}
    while step := scheduler.schedule():
        outputs = scheduler.update(step, device.run(step), seconds=0.01)
        preempted += scheduler.take_stats(step.num_tokens, 0.01).num_preemptions
        for output in outputs:
            texts[output.request_id] += len(output.token_ids)
            if output.request_id == "low" and output.finish_reason:
                assert texts["high"] == 20
    assert preempted > 0
    assert texts == {"low": 20, "high": 20}


@pytest.mark.parametrize("overlap", [True, False])
def test_drafts_give_the_same_text_in_fewer_steps(overlap: bool) -> None:
    """Drafts that are right, wrong, and half right. In the overlapped loop, steps wait for the tokens before them."""
    texts, num_steps = {}, {}
    for proposes in (True, False):
        scheduler, device = make_scheduler(), Device()
        scheduler.speculation = Scripted(always_waits=True) if proposes else None
        for name in "ab":
            add(scheduler, name, [ord(name)] * 5, max_tokens=16)
        texts[proposes], num_steps[proposes] = dict.fromkeys("ab", ()), 0
        in_flight = None
        while scheduler.has_requests or in_flight:
            step = None if scheduler.waits_for_tokens else scheduler.schedule()
            submitted = (step, device.run(step)) if step else None
            ended, in_flight = (in_flight, submitted) if overlap else (submitted, None)
            num_steps[proposes] += step is not None
            for output in scheduler.update(*ended, seconds=0.01) if ended else ():
                texts[proposes][output.request_id] += tuple(output.token_ids)
    assert texts[True] == texts[False]
    assert all(len(text) == 16 for text in texts[True].values())
    assert num_steps[True] < num_steps[False] * 0.7


def test_a_window_keeps_only_what_is_in_it_and_what_is_shared_can_still_be_found() -> None:
    scheduler = make_scheduler(window=6)
    first = add(scheduler, "a", [1, 2] * 20, max_tokens=4)
    device, most_held = Device(window=6), 0
    while step := scheduler.schedule():
        scheduler.update(step, device.run(step), seconds=0.01)
        most_held = max(most_held, scheduler.kv.pools[1].num_used)
    assert most_held <= -(-(6 + BUDGET) // BLOCK_SIZE) + 1
    again = add(scheduler, "b", [1, 2] * 20, max_tokens=4)
    while step := scheduler.schedule():
        scheduler.update(step, device.run(step), seconds=0.01)  # the device checks what is read
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 36)
