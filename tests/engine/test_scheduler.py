"""The scheduler under random traffic, without a model: what must hold after every step, whatever happens."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import FinishReason, Request, RequestStatus
from app.core.sampling import SamplingParams
from app.core.step import NOT_A_NUMBER, NOT_SAMPLED, ModelRunnerOutput, SchedulerOutput
from app.core.wire import RequestOutput
from app.engine.block_pool import BlockPool
from app.engine.chunk_pacer import ChunkPacer
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone
from app.fairness.fair_shares import FairShares

BLOCK_SIZE = 4
NUM_BLOCKS = 12
MAX_MODEL_LEN = NUM_BLOCKS * BLOCK_SIZE
MAX_NUM_SEQS = 4
BUDGET = 10
EOS = 0


def make_scheduler(prefix_caching: bool = True, has_tenants: bool = True) -> Scheduler:
    pacer = ChunkPacer(1.0, BLOCK_SIZE, BUDGET)
    return Scheduler(
        BlockPool(NUM_BLOCKS),
        pacer,
        FairShares(pacer, NUM_BLOCKS) if has_tenants else Alone(pacer),
        block_size=BLOCK_SIZE,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=BUDGET,
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=prefix_caching,
    )


def next_token(tokens: list[int]) -> int:
    """A model: its next token is a function of all tokens before. About one in eleven ends the text."""
    return hash(tuple(tokens)) % 11


@dataclass
class Device:
    """A worker that checks, as a real one could not, that it is told the truth about every row."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    cache: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """(block, offset) to all tokens up to the one whose K/V stands there: K/V depends on its whole past."""

    def run(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Do what the step says."""
        self.take(step)
        return self.compute(step)

    def take(self, step: SchedulerOutput) -> None:
        for new in step.new_requests:
            self.rows[new.row] = list(new.token_ids)
            self.computed[new.row] = new.num_computed_tokens
            self.tables[new.row] = list(new.block_ids)
        for row, blocks in step.new_blocks:
            self.tables[row] += blocks

    def compute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        sampled = []
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            tokens, start = self.rows[row], self.computed[row]
            for position in range(start, start + count):
                self.cache[self._slot(row, position)] = tuple(tokens[: position + 1])
            for position in range(start + count):  # attention reads all of the past
                assert self.cache[self._slot(row, position)] == tuple(tokens[: position + 1])
            self.computed[row] = start + count
            if start + count == len(tokens):
                tokens.append(next_token(tokens))
                sampled.append(tokens[-1])
            else:
                sampled.append(NOT_SAMPLED)
        return ModelRunnerOutput(sampled)

    def fail(self, step: SchedulerOutput) -> None:
        """Write rubbish wherever the step writes."""
        self.take(step)
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            for position in range(self.computed[row], self.computed[row] + count):
                self.cache[self._slot(row, position)] = ()
            self.computed[row] += count

    def _slot(self, row: int, position: int) -> tuple[int, int]:
        return self.tables[row][position // BLOCK_SIZE], position % BLOCK_SIZE


def check_invariants(scheduler: Scheduler, step: SchedulerOutput | None, is_cache_whole: bool) -> None:
    pool = scheduler.pool
    holders = Counter(block for request in scheduler.running for block in request.block_table)
    assert len(holders) == pool.num_used
    assert pool.num_used + pool.num_cached + len(pool._free) == NUM_BLOCKS
    for block, count in holders.items():
        assert pool._references[block] == count
        assert count == 1 or block in pool.prefix_cache or not is_cache_whole
    assert len(scheduler.running) <= MAX_NUM_SEQS
    assert len({request.row for request in scheduler.running}) == len(scheduler.running)
    for request in scheduler.requests.values():
        assert (request.status is RequestStatus.RUNNING) == bool(request.block_table)
    if step:
        assert step.num_tokens <= BUDGET
        assert len(set(step.rows)) == len(step.rows)


prompts = st.one_of(
    st.lists(st.integers(1, 2), min_size=1, max_size=MAX_MODEL_LEN),
    st.integers(1, MAX_MODEL_LEN).map(lambda length: ([1, 2, 2] * MAX_MODEL_LEN)[:length]),  # to share prefixes
)
requests = st.tuples(prompts, st.integers(0, 30), st.integers(0, 2), st.sampled_from("aab"))
# A word is a step of the engine: it goes well, or fails, or gives one request no number. A number aborts one of the
# requests; the rest are arrivals.
steps = st.sampled_from(["well", "well", "well", "fails", "no number"])
events = st.lists(st.one_of(requests, steps, steps, st.integers(0, 20)), max_size=60)


@given(events=events, overlap=st.booleans(), prefix_caching=st.booleans(), has_tenants=st.booleans())
@settings(max_examples=2000, deadline=None)
def test_random_traffic(events: list[object], overlap: bool, prefix_caching: bool, has_tenants: bool) -> None:
    scheduler, device = make_scheduler(prefix_caching, has_tenants), Device()
    arrived: dict[str, Request] = {}
    outputs: dict[str, list[RequestOutput]] = {}
    in_flight: tuple[SchedulerOutput, ModelRunnerOutput | None] | None = None
    to_blame: set[str] = set()

    def take(news: list[RequestOutput]) -> None:
        for output in news:
            outputs[output.request_id].append(output)

    def submit(plan: SchedulerOutput, how: str) -> ModelRunnerOutput | None:
        if how == "fails" or (in_flight and in_flight[1] is None):  # a step behind a failed one reads rubbish
            return device.fail(plan)
        result = device.run(plan)
        sampling = [index for index, token in enumerate(result.token_ids) if token != NOT_SAMPLED]
        if how == "no number" and sampling:
            result.token_ids[sampling[0]] = NOT_A_NUMBER
            to_blame.add(plan.request_ids[sampling[0]])
        return result

    def finish(plan: SchedulerOutput, result: ModelRunnerOutput | None) -> None:
        nonlocal in_flight
        if result is None:
            in_flight = None
            if len(plan.request_ids) == 1:
                to_blame.update(plan.request_ids)
            take(scheduler.recover(plan))
        else:
            take(scheduler.update(plan, result, seconds=0.01))

    def step(how: str = "well") -> None:
        nonlocal in_flight
        plan = scheduler.schedule()
        check_invariants(scheduler, plan, not to_blame)
        previous, in_flight = in_flight, (plan, submit(plan, how)) if plan else None
        if not overlap:
            previous, in_flight = in_flight, None
        if previous:
            finish(*previous)
        check_invariants(scheduler, None, not to_blame)

    for event in events:
        if isinstance(event, str):
            step(event)
        elif isinstance(event, int):
            take(scheduler.abort(str(event)))
        else:
            prompt, max_tokens, priority, tenant = event  # type: ignore[misc]
            request = Request(
                request_id=str(len(arrived)),
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
                sampling=SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=frozenset([EOS])),
                arrived_at=float(len(arrived)),
                priority=priority,
                tenant=tenant,
                weight={"a": 1.0, "b": 2.5}[tenant],
            )
            arrived[request.request_id], outputs[request.request_id] = request, []
            scheduler.add(request)
    for _ in range(2000):
        if not scheduler.has_requests and in_flight is None:
            break
        step()

    assert not scheduler.has_requests, "a request starved"
    assert scheduler.pool.num_used == 0
    for request_id, request in arrived.items():
        news = outputs[request_id]
        assert [output.finish_reason is not None for output in news] == [False] * (len(news) - 1) + [True]
        generated = [token for output in news for token in output.token_ids]
        assert generated == expected(request)[: len(generated)]
        if news[-1].finish_reason is FinishReason.ERROR:
            assert request_id in to_blame
        elif news[-1].finish_reason is not FinishReason.ABORT:
            assert generated == expected(request)


def expected(request: Request) -> list[int]:
    """What the request gives alone."""
    tokens = list(request.token_ids[: request.num_prompt_tokens])
    generated: list[int] = []
    while len(generated) < request.sampling.max_tokens and len(tokens) < MAX_MODEL_LEN + (not generated):
        tokens.append(next_token(tokens))
        generated.append(tokens[-1])
        if tokens[-1] == EOS:
            break
    return generated


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
