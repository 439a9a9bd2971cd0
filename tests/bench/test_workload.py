"""Requests and their times of arrival depend on nothing except the seed."""

import itertools
import json
import statistics

import pytest

from paceline_bench.workload import Workload


def test_arrivals_are_poisson_and_repeatable() -> None:
    load = Workload(rate=20.0, duration=500.0, seed=3)
    arrivals = list(load.arrivals())
    assert arrivals == list(load.arrivals())
    assert arrivals != list(Workload(rate=20.0, duration=500.0, seed=4).arrivals())
    assert max(arrivals) < 500.0
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    # Exponential gaps: mean and standard deviation are both 1/rate. 10,000 gaps: 5 % is five standard errors.
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)


def test_arrivals_end_with_the_number_of_requests() -> None:
    assert len(list(Workload(rate=2.0, num_requests=7, seed=1).arrivals())) == 7


def test_bodies_depend_on_seed_load_and_number_only() -> None:
    def load(seed: int, concurrency: int) -> Workload:
        return Workload(concurrency=concurrency, num_requests=9, model="m", seed=seed)

    bodies = [load(seed, concurrency).body(i) for seed in (0, 1) for concurrency in (1, 8) for i in (0, 1)]
    assert len(set(bodies)) == 8
    assert load(0, 1).body(1) == bodies[1]


def test_bodies_ask_for_the_lengths() -> None:
    load = Workload(concurrency=1, num_requests=1, model="m", input_len=50, output_len=7)
    body = json.loads(load.body(0))
    assert len(body["prompt"]) == 50
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (7, True, 0)
    chat = json.loads(Workload(concurrency=1, num_requests=1, model="m", input_len=50, endpoint="chat").body(0))
    assert len(chat["messages"][0]["content"].split()) == 50


@pytest.mark.parametrize("wrong", [{"num_requests": 1}, {"concurrency": 1}, {"concurrency": 1, "rate": 1.0}])
def test_a_workload_without_begin_or_end_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Workload(**wrong)  # type: ignore[arg-type]
