"""Guesses from a request's own tokens, and how many of them a step has."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import MAX_WITH_DRAFTS, SchedulerOutput
from app.engine.drafts import NO_GUESS, Guess
from app.engine.ngram import NgramProposer
from app.engine.speculation import Speculation


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
            assert 0 < guess.chance < 1
            assert len(guess.token_ids) == most
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
    assert guesses[0].chance > 0.9
    assert guesses[1] == NO_GUESS or guesses[1].chance < 0.3


def test_a_long_prompt_is_taken_in_over_several_steps() -> None:
    request, proposer = request_of([*range(1200), 5, 6]), NgramProposer()
    request.max_num_tokens = 5000
    assert [proposer.propose(request, 2).token_ids for _ in range(3)] == [[], [], [7, 8]]


class Sure:
    """A proposer that always has guesses, with the same chance."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def propose(self, request: Request, most: int) -> Guess:  # noqa: ARG002
        """See `Proposer.propose`."""
        return Guess([1] * most, self.chance)


def speculation_with(chance: float, rows: int, cost: float) -> Speculation:
    """A step without drafts takes a second, and each draft adds `cost`."""
    speculation = Speculation(Sure(chance), 512)
    names = [str(row) for row in range(rows)]
    for count in range(16):
        step = SchedulerOutput(rows=list(range(rows)), request_ids=names, num_scheduled_tokens=[1] * rows)
        if count:
            step.drafts[0] = [1] * count
            step.num_scheduled_tokens[0] += count
        for _ in range(3):
            speculation.observe(step, 1 + count * cost)
    return speculation


@pytest.mark.parametrize(
    ("chance", "rows", "cost", "expected"),
    [
        (0.9, 1, 0.1, 10),  # (1 + 0.9 + ... + 0.9 ** 10) / 2 = 3.43 tokens a second, and 3.42 with one more or less
        (0.5, 1, 0.1, 2),
        (0.5, 1, 0.6, 0),
        (0.9, 1, 1.0, 0),
        (0.9, 8, 0.5, 0),  # eight tokens a second without, two more for each further second
        (0.9, 33, 0.0, 0),
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
    speculation = speculation_with(1.0, 8, 0.0)
    requests = [request_of([1, 2], str(row)) for row in range(8)]
    requests[1].max_drafts, requests[2].max_num_tokens, requests[3].max_num_tokens = 0, 3, 5
    requests[4].sampling = SamplingParams(max_tokens=9, seed=0, frequency_penalty=1.0)
    counts = {name: len(tokens) for name, tokens in speculation.choose(requests).items()}
    assert counts.keys() == {"0", "3", "5", "6", "7"}
    assert counts["3"] == 2
    assert sum(counts.values()) == MAX_WITH_DRAFTS - 8
    assert speculation.is_worth_waiting(requests)


def test_nothing_is_drafted_before_the_time_of_a_step_is_known() -> None:
    assert Speculation(Sure(1.0), 512).choose([request_of([1, 2])]) == {}
