"""The shares that tenants get of the scheduler when others want all of it."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import Request, RequestStatus
from app.core.sampling import SamplingParams
from app.core.step import KVGroup, ModelRunnerOutput, SchedulerOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.fair_shares import FairShares

BLOCK_SIZE = 16
BUDGET = 64
ROWS = 8


class Traffic:
    """A scheduler whose steps always succeed, and the outputs of each request."""

    def __init__(self, num_blocks: int = 1000, max_itl: float = 1000.0, rows: int = ROWS, budget: int = BUDGET) -> None:
        pacer = ChunkPacer(max_itl, BLOCK_SIZE, budget)
        self.policy = FairShares(pacer, num_blocks)
        self.scheduler = Scheduler(
            KVCache([KVGroup(num_blocks)], BLOCK_SIZE, budget),
            pacer,
            self.policy,
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=640,
            clock=lambda: self.seconds,
        )
        self.num_steps = 0
        self.seconds = 1.0
        self.arrived: list[Request] = []
        self.generated: Counter[str] = Counter()
        self.first_token: dict[str, int] = {}
        self.first_token_at: dict[str, float] = {}

    def arrive(self, tenant: str, prompt: int, max_tokens: int, weight: float = 1.0) -> str:
        """A request of `prompt` tokens that no other has; returns its id."""
        number = len(self.arrived) + 1
        request = Request(
            request_id=f"{tenant}-{number}",
            token_ids=[number] * prompt,
            num_prompt_tokens=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, seed=0),
            arrived_at=float(number),
            tenant=tenant,
            weight=weight,
        )
        self.arrived.append(request)
        self.scheduler.add(request)
        return request.request_id

    def step(self) -> SchedulerOutput | None:
        """Plan and finish one step."""
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        self.num_steps += 1
        num_decodes = plan.num_scheduled_tokens.count(1)
        seconds = 0.03 + 0.004 * num_decodes + 0.001 * (plan.num_tokens - num_decodes)  # of a small CPU
        self.seconds += seconds
        samples = []
        for name, _ in zip(plan.request_ids, plan.rows, strict=True):
            samples.append([7] if self.scheduler.requests[name].num_in_flight else [])
        for output in self.scheduler.update(plan, ModelRunnerOutput(samples), seconds):
            self.generated[output.request_id.split("-")[0]] += len(output.token_ids)
            self.first_token.setdefault(output.request_id, self.num_steps)
            self.first_token_at.setdefault(output.request_id, self.seconds)
        return plan

    def steps_to_first_token(self, tenant: str, prompt: int) -> int:
        """The number of steps until a request that arrives now gets its first token."""
        start, name = self.num_steps, self.arrive(tenant, prompt, max_tokens=4)
        while name not in self.first_token:
            assert self.num_steps < start + 1000
            self.step()
        return self.first_token[name] - start


def small_cpu() -> Traffic:
    """A CPU on which the decodes of a full batch take longer than `max_itl`."""
    return Traffic(num_blocks=4000, max_itl=0.2, rows=64, budget=512)


@pytest.mark.parametrize("flood", [(10, 600), (600, 30), (200, 200)])
@pytest.mark.parametrize("num_blocks", [1000, 60])
def test_a_flood_at_most_doubles_the_time_to_another_tenants_first_token(
    flood: tuple[int, int], num_blocks: int
) -> None:
    alone, crowded = Traffic(num_blocks), Traffic(num_blocks)
    for _ in range(500):
        crowded.arrive("flood", *flood)
    for _ in range(100):
        crowded.step()
    for prompt in (10, 100, 300, 10, 300):
        steps = alone.steps_to_first_token("other", prompt)
        assert crowded.steps_to_first_token("other", prompt) <= 2 * steps + 1  # shares are whole tokens, steps, too
        for _ in range(60):  # so that the other wants less than its share
            crowded.step()


@pytest.mark.parametrize("flood", [(10, 600), (50, 200)])
def test_a_floods_decodes_leave_half_of_the_time_to_another_tenants_prompt(flood: tuple[int, int]) -> None:
    """Even where they alone take longer than `max_itl`, so that next to them there would be time for one block."""
    alone, crowded = small_cpu(), small_cpu()
    for _ in range(500):
        crowded.arrive("flood", *flood)
    for _ in range(150):
        crowded.step()
    for prompt in (10, 200, 400, 600):
        seconds = []
        for one in (alone, crowded):
            start, name = one.seconds, one.arrive("other", prompt, max_tokens=4)
            while name not in one.first_token_at:
                one.step()
            seconds.append(one.first_token_at[name] - start)
        assert seconds[1] <= 2 * seconds[0], (prompt, seconds)
        for _ in range(60):
            crowded.step()
            assert name in crowded.scheduler.requests or not crowded.policy.yielding  # with nobody else's prompt


@pytest.mark.parametrize("prompt", [8, 60, 300])
def test_a_tenant_that_asks_again_at_once_need_not_wait_for_a_long_prompt_each_time(prompt: int) -> None:
    alone, crowded = small_cpu(), small_cpu()
    for _ in range(200):
        crowded.arrive("flood", 600, 1)
    for _ in range(20):
        crowded.step()
    seconds = []
    for traffic in (alone, crowded):
        start = traffic.seconds
        for _ in range(30):
            traffic.steps_to_first_token("other", prompt)
        seconds.append((traffic.seconds - start) / 30)
    assert seconds[1] <= 2 * seconds[0] + 0.2


def test_yield_steps_are_as_many_as_is_due_by_weight() -> None:
    """One of a tenth of the weight does not take half of the time, however many prompts it sends."""
    generated = []
    for weight in (1.0, 9.0):
        traffic = small_cpu()
        for _ in range(30):
            traffic.arrive("heavy", 10, 600, weight)
        for _ in range(50):
            traffic.step()
        before, start = traffic.generated["heavy"], traffic.seconds
        for _ in range(100):
            traffic.arrive("light", 600, 1)
        while traffic.seconds < start + 30:
            traffic.step()
        generated.append(traffic.generated["heavy"] - before)
    alone = 30 * 30 / (0.03 + 0.004 * 30)  # in as many seconds
    assert generated[0] > 0.3 * alone
    assert generated[1] > 0.7 * alone


@given(st.integers(40, 400), st.sampled_from([1.0, 4.0]))
@settings(max_examples=20, deadline=None)
def test_nobody_yields_a_step_to_prompts_that_find_no_memory(num_blocks: int, weight: float) -> None:
    traffic = Traffic(num_blocks=num_blocks, max_itl=0.05, rows=64, budget=512)
    for _ in range(40):
        traffic.arrive("a", 100, 100)
        traffic.arrive("b", 100, 100, weight)
    for _ in range(150):
        plan = traffic.step()
        assert plan is None or not traffic.policy.yielding or max(plan.num_scheduled_tokens) > 1


def test_a_tenant_that_is_gone_costs_nothing() -> None:
    steps = []
    for has_other in (False, True):
        traffic = Traffic(max_itl=0.2, rows=64, budget=512)
        traffic.arrive("other" if has_other else "one", 5, 1)
        traffic.step()
        traffic.seconds += 100
        for _ in range(30):
            traffic.arrive("one", 600, 1)
        while traffic.step():
            pass
        steps.append(traffic.num_steps)
    assert steps[0] == steps[1]


@given(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.integers(1, 100), st.integers(1, 60), st.integers(1, 60)))
@settings(max_examples=20, deadline=None)
def test_tenants_that_all_want_more_get_service_by_weight(case: tuple[float, int, int, int]) -> None:
    weight, prompt, first_output, second_output = case
    traffic = Traffic()
    for _ in range(300):
        traffic.arrive("a", prompt, first_output)
        traffic.arrive("b", prompt, second_output, weight)
    for _ in range(150):
        traffic.step()
        waiting = [name for name in traffic.scheduler.requests if name not in traffic.first_token]
        if len({name[0] for name in waiting}) < 2:  # one has all that it wants
            break
    counter = traffic.policy.counter
    # As far as a batch of the largest requests goes (theorem 4.4 of the paper, for service over weight).
    assert abs(counter("a") - counter("b")) <= 2 * (prompt + 2 * 60) * ROWS / min(1.0, weight)


WEIGHTS = {"a": 1.0, "b": 2.5, "c": 0.5}
LONGEST_PROMPT, LONGEST_OUTPUT = 60, 10
bursts = st.tuples(
    st.integers(1, 12), st.sampled_from("abc"), st.integers(1, LONGEST_PROMPT), st.integers(1, LONGEST_OUTPUT)
)
"""Requests of one tenant with equal lengths of prompt and output."""


@given(
    events=st.lists(bursts | st.integers(1, 20), max_size=30),
    num_blocks=st.sampled_from([40, 1000]),
    max_itl=st.sampled_from([0.1, 1000.0]),
)
@settings(max_examples=100, deadline=None)
def test_random_traffic_is_served_by_weight(
    events: list[tuple[int, str, int, int] | int], num_blocks: int, max_itl: float
) -> None:
    """The numbers that hypothesis draws are steps between bursts."""
    traffic = Traffic(num_blocks, max_itl, rows=8, budget=16)
    for event in [*events, 1000]:
        if not isinstance(event, int):
            number, tenant, prompt, max_tokens = event
            for _ in range(number):
                traffic.arrive(tenant, prompt, max_tokens, WEIGHTS[tenant])
            continue
        for _ in range(event):
            running = {request: request.num_missing for request in traffic.scheduler.running}
            waiting, before = who_waits(traffic), served(traffic)
            counters = {tenant: traffic.policy.counter(tenant) for tenant in WEIGHTS}
            plan = traffic.step()
            if plan is None:
                break
            check_tokens_are_shared(plan, {r: n for r, n in running.items() if r.tenant not in traffic.policy.yielding})
            if len(waiting) > 1:
                for tenant, tokens in (served(traffic) - before).items():
                    gained = traffic.policy.counter(tenant) - counters[tenant]
                    assert gained == pytest.approx(tokens / WEIGHTS[tenant])
            check_counters_stay_close(traffic, rows=8, budget=16)
    assert not traffic.scheduler.requests


def who_waits(traffic: Traffic) -> set[str]:
    return {request.tenant for request in traffic.scheduler.requests.values() if request.is_waiting}


def served(traffic: Traffic) -> Counter[str]:
    """What each tenant was given: prompts that were admitted, and two for each token that was generated."""
    tokens = Counter({tenant: 2 * number for tenant, number in traffic.generated.items()})
    for request in traffic.arrived:
        tokens[request.tenant] += request.num_prompt_tokens if request.scheduled_at else 0
    return tokens


def check_counters_stay_close(traffic: Traffic, rows: int, budget: int) -> None:
    """Of tenants that wait, none is ahead of another by more than a batch, and what others may have saved up.

    A tenant is admitted only when its counter is the least of those that wait. From then on only what it has running
    adds to it: at most one prompt that is charged, and the outputs of all rows. Who did not wait then came later, and
    its counter was lifted to the least of those that did, but for its credit; that one may have come in the same way,
    so credits add up.
    """
    counters = {tenant: traffic.policy.counter(tenant) for tenant in who_waits(traffic)}
    for tenant, counter in counters.items():
        batch = (LONGEST_PROMPT + 2 * LONGEST_OUTPUT * rows) / WEIGHTS[tenant]
        credit = sum(budget / weight for other, weight in WEIGHTS.items() if other != tenant)
        assert counter - min(counters.values()) <= batch + credit


def check_tokens_are_shared(plan: SchedulerOutput, wanted: dict[Request, int]) -> None:
    """Of two tenants with running prompts, none has more tokens for its weight while the other wants more, too.

    But for what every tenant has, its decodes and a token of its prompts; and allowances are rounded up, which each
    time can take a token from another tenant.
    """
    counts = dict(zip(plan.request_ids, plan.num_scheduled_tokens, strict=True))
    given, left, decodes = Counter[str](), Counter[str](), Counter[str]()
    for request, want in wanted.items():
        count = counts.get(request.request_id, 0)
        given[request.tenant] += count
        left[request.tenant] += want - count if request.num_blocks else 0
        decodes[request.tenant] += want == 1
    rounding = len(WEIGHTS) - 1
    for one in given:
        for other in given:
            has_more = given[one] > decodes[one] + 1
            if has_more and left[other] > rounding:
                assert (given[one] - 1) / WEIGHTS[one] <= (given[other] + rounding) / WEIGHTS[other], (one, given, left)


@given(arrivals=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100), st.integers(1, 20)), max_size=60))
@settings(max_examples=50, deadline=None)
def test_no_row_is_idle_while_a_request_could_use_it(arrivals: list[tuple[str, int, int]]) -> None:
    traffic = Traffic()
    traffic.arrive("a", BUDGET, 1)  # from which the pacer learns how long a step takes
    traffic.step()
    for arrival in arrivals:
        traffic.arrive(*arrival)
    while plan := traffic.step():
        stats = traffic.scheduler.take_stats(0, 0.0)
        is_full = len(plan.rows) == ROWS or plan.num_tokens >= BUDGET - 2 * ROWS
        assert is_full or stats.num_waiting == 0
    assert traffic.generated.total() == 1 + sum(max_tokens for _, _, max_tokens in arrivals)


def test_a_pause_saves_up_no_service() -> None:
    traffic = Traffic()
    traffic.arrive("late", 10, 1)
    for _ in range(300):
        traffic.arrive("busy", 10, 50)
    for _ in range(200):
        traffic.step()
    before = traffic.generated["busy"]
    for _ in range(300):
        traffic.arrive("late", 10, 50)
    for _ in range(200):
        traffic.step()
    assert traffic.generated["busy"] - before > 0.35 * 200 * ROWS


def test_the_tenant_that_had_most_service_is_preempted() -> None:
    traffic = Traffic(num_blocks=40)
    for _ in range(3):
        traffic.arrive("much", 100, 500)
    for _ in range(20):
        traffic.step()
    traffic.arrive("little", 100, 60)
    preempted = set()
    while traffic.generated["little"] < 60:
        traffic.step()
        running = {request.request_id for request in traffic.scheduler.running}
        preempted |= {name for name in traffic.first_token if name in traffic.scheduler.requests} - running
    assert preempted
    assert all(name.startswith("much") for name in preempted)


def test_a_prompt_that_lacks_one_token_is_not_preempted_for_another_tenant() -> None:
    """What is left of it looks like a decode, but it has got no token since it was given its row."""
    policy = FairShares(ChunkPacer(1000.0, BLOCK_SIZE, BUDGET), num_blocks=10)
    requests = {}
    for name, arrived_at in (("holds", 0.0), ("next", 1.0)):
        request = Request(name, [1] * 31, 31, SamplingParams(max_tokens=9, seed=0), arrived_at, tenant=name)
        requests[name] = request
        policy.push(request)
    running = requests["holds"]
    policy.pop(running)
    policy.charge(running, 31, 0)
    running.status, running.num_admitted_tokens, running.max_num_tokens = RequestStatus.RUNNING, 31, 40
    running.block_tables, running.first_blocks = [list(range(8))], [0]
    for computed, in_flight in ((30, 0), (31, 1)):
        running.num_computed_tokens, running.num_in_flight = computed, in_flight
        policy.begin_step(2.0, [running], 2)
        victim = policy.victim([running], requests["next"], 2)
        assert victim is (running if in_flight else None)
