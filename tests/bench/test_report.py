"""Figures of a run, compared with numpy and with values calculated by hand."""

import random

import numpy as np
import pytest

from paceline_bench.client import Record
from paceline_bench.report import Distribution, summarize
from paceline_bench.runner import Run
from paceline_bench.workload import Workload


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 1000])
def test_percentiles_are_numpys(count: int) -> None:
    rng = random.Random(count)
    seconds = [rng.expovariate(10) for _ in range(count)]
    found = Distribution.of(seconds)
    assert found is not None
    expected = [np.mean(seconds), *np.percentile(seconds, [50, 90, 99]), np.max(seconds)]
    assert [found.mean, found.p50, found.p90, found.p99, found.max] == pytest.approx([1000 * x for x in expected])


def test_figures_by_hand() -> None:
    run = Run(Workload(concurrency=2, num_requests=3, input_len=5, output_len=3))
    run.records = [
        Record(10.0, event_times=[10.5, 10.7, 11.0], prompt_tokens=6, completion_tokens=3, cached_tokens=4),
        Record(11.0, event_times=[11.1, 12.0], completion_tokens=5),  # more tokens than events, and no prompt_tokens
        Record(5.0, event_times=[5.1], error="broken"),  # counts nowhere
        Record(5.0, error="broken"),
        Record(5.0, error="late"),
    ]
    s = summarize(run)
    assert (s.requests, s.failed, s.errors) == (5, 3, ["broken", "late"])
    assert (s.input_tokens, s.cached_tokens, s.output_tokens, s.short_outputs) == (11, 4, 8, 1)
    assert (s.wall_s, s.out_tok_s, s.total_tok_s, s.req_s) == (2.0, 4.0, 9.5, 1.0)
    assert s.ttft_ms is not None
    assert s.ttft_ms.mean == pytest.approx((500 + 100) / 2)
    assert s.itl_ms is not None
    assert s.itl_ms.mean == pytest.approx((200 + 300 + 900) / 3)
    assert s.tpot_ms is not None
    assert s.tpot_ms.mean == pytest.approx((500 / 2 + 900 / 4) / 2)
    assert s.e2e_ms is not None
    assert s.e2e_ms.max == pytest.approx(1000)
    assert s.tokens_per_event == 8 / 5


def test_no_request_gives_no_figures() -> None:
    s = summarize(Run(Workload(concurrency=1, num_requests=1)))
    assert (s.requests, s.out_tok_s, s.ttft_ms) == (0, 0.0, None)
