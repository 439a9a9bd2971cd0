"""Guesses from a request's own tokens, and how many of them a step has."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import BY_MODEL, MAX_WITH_DRAFTS, KVGroup, ModelRunnerOutput, SchedulerOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.draft_model import DraftModelProposer
from app.engine.drafts import NO_GUESS, Guess
from app.engine.kv_cache import KVCache
from app.engine.ngram import NgramProposer
from app.engine.scheduler import Scheduler
from app.engine.speculation import Speculation
from app.fairness.alone import Alone


def request_of(token_ids: Sequence[int], name: str = "a", **options: object) -> Request:
    """A request that has these tokens so far, and room for more."""
    request = Request(name, list(token_ids), 1, SamplingParams(max_tokens=1000, seed=0), 0.0, **options)  # type: ignore[arg-type]
    request.max_num_tokens = 2000
    return request


@given(pieces=st.lists(st.lists(st.integers(0, 3), max_size=20), min_size=1, max_size=12), most=st.integers(1, 15))
@settings(max_examples=300, deadline=None)
def test_a_guess_is_what_followed_the_last_tokens_before(pieces: list[list[int]], most: int) -> None:
    """Tokens come in pieces of any size. A text that repeats itself to its end goes on repeating."""
    proposer, request = NgramProposer(), request_of([])
    for piece in pieces:
        request.token_ids += piece
        tokens = request.token_ids
        guess = proposer.propose(request, most)
        places = [place for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]]
        assert bool(guess.token_ids) == bool(places)
        if places:
            assert sorted(guess.chances, reverse=True) == guess.chances
            assert 0 < guess.chances[-1] <= guess.chances[0] < 1
            assert len(guess.token_ids) == len(guess.chances) == most
            assert any(_follows(tokens, place, guess.token_ids) for place in places)


def _follows(tokens: list[int], place: int, guess: list[int]) -> bool:
    text = tokens + guess
    return text[len(tokens) :] == [text[place + index] for index in range(len(guess))]


def test_the_longest_match_counts() -> None:
    text = [1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 9, 9, 3, 4, 70, 1, 2, 3, 4]
    assert NgramProposer().propose(request_of(text), 2).token_ids == [50, 9]


def test_chances_are_learnt_also_where_nothing_is_drafted() -> None:
    chance, proposer = random.Random(0), NgramProposer()
    repeating, random_text = request_of([]), request_of([])
    for step in range(400):
        repeating.token_ids.append(step % 7)
        random_text.token_ids.append(chance.randrange(8))
        guesses = [proposer.propose(request, 4) for request in (repeating, random_text)]
    assert guesses[0].chances[3] > 0.8
    assert guesses[1] == NO_GUESS or guesses[1].chances[0] < 0.3


def test_a_long_prompt_is_taken_in_over_several_steps() -> None:
    request, proposer = request_of([*range(1200), 5, 6]), NgramProposer()
    request.max_num_tokens = 5000
    assert [proposer.propose(request, 2).token_ids for _ in range(3)] == [[], [], [7, 8]]


def test_answers_to_prompts_that_begin_alike_are_gone_by() -> None:
    """Those of the same tenant. The longest match counts, and a request's own text where both are as long."""
    proposer, beginning, answer = NgramProposer(), list(range(100, 140)), list(range(200, 230))
    ended = request_of([*beginning, 7, *answer])
    ended.num_prompt_tokens = 41
    proposer.propose(ended, 4)
    proposer.end(ended)

    def guess(token_ids: list[int], **options: object) -> list[int]:
        request = request_of(token_ids, **options)
        request.num_prompt_tokens = 41
        return proposer.propose(request, 4).token_ids

    asked = [*beginning, 8]
    assert guess([*asked, *answer[5:9]]) == answer[9:13]
    assert guess([*asked, *answer[5:8]]) == []  # three tokens may be the same by chance
    assert guess([*asked, *answer[-6:-2]]) == answer[-2:]
    assert guess([*asked, *answer]) == []
    assert guess([*asked, *answer[5:9], 1, 2, *answer[5:9]]) == [1, 2, *answer[5:7]]
    assert guess([*asked, *answer[5:9]], tenant="another") == []
    assert guess([*asked, *answer[5:9]], cache_salt="another") == []
    assert guess([99, *asked[1:], *answer[5:9]]) == []


def test_answers_that_were_used_long_ago_are_forgotten() -> None:
    proposer = NgramProposer()
    for number in range(300):
        for _ in range(5):
            ended = request_of([number, *range(1000, 2000)])
            proposer.propose(ended, 1)
            proposer.end(ended)
    kept = proposer._answers
    sizes = [text.size for texts in kept._by_beginning.values() for text in texts]
    assert sum(sizes) == kept._size <= 2**20
    assert len(sizes) > 100
    assert max(map(len, kept._by_beginning.values())) == 4
    assert proposer.propose(request_of([299, *range(1000, 1020)]), 1).token_ids == [1020]


class Sure:
    """A proposer that always has guesses, with the same chance."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def propose(self, request: Request, most: int) -> Guess:  # noqa: ARG002
        """See `Proposer.propose`."""
        return Guess([1] * most, [self.chance**count for count in range(1, most + 1)])


def speculation_with(chance: float, rows: int, cost: float, most: int = 15) -> Speculation:
    """A step without drafts takes a second, and each draft adds `cost`."""
    speculation = Speculation(Sure(chance), 512)
    names = [str(row) for row in range(rows)]
    for count in range(most + 1):
        step = SchedulerOutput(rows=list(range(rows)), request_ids=names, num_scheduled_tokens=[1] * rows)
        if count:
            step.drafts[0] = [1] * count
            step.num_scheduled_tokens[0] += count
        for _ in range(4):
            speculation.observe(step, 1 + count * cost)
    speculation.observe(SchedulerOutput(rows=list(range(rows)), num_scheduled_tokens=[1] * rows), 1.0)
    return speculation


@pytest.mark.parametrize(
    ("chance", "rows", "cost", "expected"),
    [
        (0.9, 1, 0.1, 11),  # (1 + 0.9 + ... + 0.9 ** 11) / 2.1 = 3.42 tokens a second, and 3.35 with 7 drafts
        (0.5, 1, 0.1, 2),
        (0.5, 1, 0.6, 0),
        (0.9, 1, 1.0, 0),
        (0.9, 8, 0.5, 0),  # eight tokens a second without, two more for each further second
    ],
)
def test_drafts_are_as_many_as_pay(chance: float, rows: int, cost: float, expected: int) -> None:
    speculation = speculation_with(chance, rows, cost)
    requests = [request_of([1, 2], str(row), max_drafts=None if row == 0 else 0) for row in range(rows)]
    drafts = speculation.choose(requests)
    assert len(drafts.get("0", [])) == expected
    if not expected:
        assert not speculation.is_worth_waiting(requests)


def test_bounds_hold_even_if_everything_is_sure_and_free() -> None:
    speculation = speculation_with(1.0, 12, 0.0, MAX_WITH_DRAFTS - 12)
    requests = [request_of([1, 2], str(row)) for row in range(12)]
    requests[1].max_drafts, requests[2].max_num_tokens, requests[3].max_num_tokens = 0, 3, 5
    counts = {name: len(tokens) for name, tokens in speculation.choose(requests).items()}
    assert counts["3"] == 2
    assert not counts.keys() & {"1", "2"}
    assert sum(counts.values()) == MAX_WITH_DRAFTS - 12
    assert speculation.is_worth_waiting(requests)


def test_no_more_than_twice_the_drafts_that_were_measured_are_tried() -> None:
    """And two more, in steps of 1 to 8, 12 or 16 tokens."""
    request = request_of([1, 2])
    counts = [len(speculation_with(1.0, 1, 0.0, most).choose([request]).get("a", [])) for most in range(8)]
    assert counts == [2, 4, 6, 7, 7, 11, 11, 15]


def test_nothing_is_drafted_before_the_time_of_a_step_is_known() -> None:
    assert Speculation(Sure(1.0), 512).choose([request_of([1, 2])]) == {}


def seconds_for(texts: Sequence[Sequence[int]], cost: float, drafts: bool) -> float:
    """What it takes to generate texts side by side, behind a prompt of one token, in the overlapped loop.

    A step without drafts takes a second, each draft adds `cost`, and a step that waits for tokens begins 0.05 later.
    What is measured is noisy: one step in fifty seems three times as long, and other programs, which come and go, make
    all steps up to three times as long.
    """
    noise, pacer, total, beside = random.Random(0), ChunkPacer(1.0, 16, 512), 0.0, 1.0
    scheduler = Scheduler(
        KVCache([KVGroup(4096)], 16, 512, prefix_caching=False),
        pacer,
        Alone(pacer),
        max_num_seqs=len(texts),
        max_num_batched_tokens=512,
        max_model_len=4096,
        speculation=Speculation(NgramProposer(), 512) if drafts else None,
    )
    for index, text in enumerate(texts):
        sampling = SamplingParams(max_tokens=len(text) - 1, seed=0)
        scheduler.add(Request(str(index), [text[0]], 1, sampling, float(index)))
    requests = dict(scheduler.requests)
    generated = dict.fromkeys(requests, 0)
    in_flight: tuple[SchedulerOutput, float] | None = None
    while scheduler.has_requests or in_flight:
        waits = scheduler.waits_for_tokens
        step = None if waits else scheduler.schedule()
        if in_flight:
            result = []
            for name, row in zip(in_flight[0].request_ids, in_flight[0].rows, strict=True):
                guesses, start = in_flight[0].drafts.get(row, []), generated[name] + 1
                coming = list(texts[int(name)][start : start + len(guesses) + 1])
                right = next((i for i, (a, b) in enumerate(zip(guesses, coming, strict=False)) if a != b), len(guesses))
                result.append(coming[: right + 1])
                generated[name] += len(result[-1])
            scheduler.update(in_flight[0], ModelRunnerOutput(result), in_flight[1])
        step = scheduler.schedule() if waits else step
        if step:
            num_drafts = sum(map(len, step.drafts.values()))
            took = 1 + cost * num_drafts
            total += took + 0.05 * waits
            beside = noise.uniform(1, 3) if noise.random() < 0.02 else beside
            noisy = noise.uniform(0.9, 1.2) * (3 if noise.random() < 0.02 else 1) * beside
            in_flight = step, (took + 0.05 * bool(step.drafts)) * noisy
        else:
            in_flight = None
    return total


def _alike(chance: random.Random, length: int) -> list[int]:
    """A text that repeats parts of itself, and often goes on otherwise than before."""
    text = [1]
    while len(text) < length:
        start = chance.randrange(len(text))
        text += [*text[start : start + chance.randrange(6)], chance.randrange(50)]
    return text[:length]


@pytest.mark.parametrize(("rows", "cost"), [(1, 0.15), (1, 0.6), (4, 0.02), (4, 0.6), (16, 0.02), (16, 0.15)])
@pytest.mark.parametrize("kind", ["random", "alike", "repeating"])
def test_time_is_won_or_next_to_none_is_lost(kind: str, cost: float, rows: int) -> None:
    chance = random.Random(1)
    texts = {
        "random": [[chance.randrange(50) for _ in range(1500)] for _ in range(rows)],
        "alike": [_alike(chance, 1500) for _ in range(rows)],
        "repeating": [[chance.randrange(1000) for _ in range(100)] * 15 for _ in range(rows)],
    }[kind]
    ratio = seconds_for(texts, cost, True) / seconds_for(texts, cost, False)
    assert ratio < 1.02
    if kind == "repeating" and cost * rows < 0.5:
        assert ratio < 0.75


def test_the_chance_of_a_models_drafts_is_how_often_they_were_right() -> None:
    """Half of all drafts are right, in one request nine of ten."""
    rng, proposer = random.Random(0), DraftModelProposer()
    usual, lucky = (request_of([1, 2], name) for name in ("usual", "lucky"))
    for _ in range(300):
        for request, chance in ((usual, 0.5), (lucky, 0.9)):
            right = next((at for at in range(4) if rng.random() > chance), 4)
            proposer.learn(request, 4, right)
    assert proposer.propose(usual, 3).token_ids == [BY_MODEL] * 3
    first, second = proposer.propose(lucky, 2).chances
    assert 0.75 < first < 0.95
    assert second == pytest.approx(first**2)
    assert 0.45 < proposer.propose(usual, 1).chances[0] < 0.75


def test_a_draft_model_goes_on_from_the_token_in_flight() -> None:
    """So one draft is worth waiting for, where a draft from the text would have to guess that token, too."""
    request = request_of([1, 2, 3, 1, 2, 3, 1, 2])
    for proposer, most, is_worth in ((DraftModelProposer(), 1, True), (NgramProposer(), 1, False)):
        speculation = Speculation(proposer, 64)
        for _ in range(3):
            speculation.observe(SchedulerOutput(rows=[0], request_ids=["a"], num_scheduled_tokens=[1]), 1.0)
        request.max_drafts, request.of_proposer = most, None
        assert speculation.is_worth_waiting([request]) is is_worth
