"""Runs of the load test against a real server over a socket."""

import pytest

from paceline_bench.client import Server, stream_request
from paceline_bench.errors import BenchError
from paceline_bench.report import summarize
from paceline_bench.runner import Run
from paceline_bench.workload import Endpoint, Workload

from .server import TOKEN_SECONDS, StreamServer


async def execute(server: StreamServer, workload: Workload) -> Run:
    run = Run(workload)
    async with Server(server.url) as target:
        await run.execute(target)
    return run


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
async def test_one_request(endpoint: Endpoint, cut: int) -> None:
    load = Workload(concurrency=1, num_requests=1, model="tiny", endpoint=endpoint, input_len=30, output_len=6)
    with StreamServer(cut=cut) as server:
        (record,) = (await execute(server, load)).records
    assert record.error is None
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (30, 6, 3)
    assert len(record.event_times) == 6
    # Lower bounds hold on any machine: the server sleeps this long, by the same clock.
    assert record.ttft >= 31 * TOKEN_SECONDS
    assert record.event_times[-1] - record.start >= 36 * TOKEN_SECONDS


async def test_closed_loop_keeps_its_concurrency() -> None:
    load = Workload(concurrency=4, num_requests=11, model="tiny", input_len=2, output_len=3)
    with StreamServer(gather=4) as server:
        run = await execute(server, load)
    assert (len(run.records), run.in_flight, run.token_events) == (11, 0, 33)
    assert server.most_open == 4
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(set(prompts)) == 11


async def test_closed_loop_with_a_duration_ends_its_last_requests() -> None:
    load = Workload(concurrency=2, duration=0.05, model="tiny", input_len=2, output_len=3)
    with StreamServer() as server:
        run = await execute(server, load)
    assert run.in_flight == 0
    assert len(run.records) == len(server.bodies) >= 2
    assert all(record.error is None for record in run.records)


async def test_open_loop_does_not_wait_for_answers() -> None:
    load = Workload(rate=500.0, num_requests=20, model="tiny", input_len=2, output_len=3)
    with StreamServer(gather=20) as server:  # no answer before all 20 have come
        run = await execute(server, load)
    assert (len(run.records), server.most_open) == (20, 20)
    starts = sorted(record.start - record.delay for record in run.records)
    offsets = list(load.arrivals())
    assert [b - starts[0] for b in starts] == pytest.approx([t - offsets[0] for t in offsets], abs=1e-6)


async def test_without_usage_events_are_counted() -> None:
    load = Workload(concurrency=1, num_requests=1, model="tiny", input_len=2, output_len=5)
    with StreamServer(usage=False) as server:
        summary = summarize(await execute(server, load))
    assert (summary.input_tokens, summary.output_tokens) == (2, 5)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("refuse_every", "HTTP 429: "), ("break_every", "RemoteProtocolError"), ("error_every", "the engine died")],
)
async def test_failures_are_counted_with_their_text(fault: str, text: str) -> None:
    load = Workload(concurrency=2, num_requests=9, model="tiny", input_len=2, output_len=4)
    with StreamServer(**{fault: 3}) as server:  # type: ignore[arg-type]
        summary = summarize(await execute(server, load))
    assert (summary.requests, summary.failed, summary.output_tokens) == (9, 3, 24)
    assert len(summary.errors) == 1
    assert text in summary.errors[0]


async def test_an_unreachable_server() -> None:
    with StreamServer() as server:
        url = server.url
        async with Server(url) as target:
            assert await target.first_model() == "tiny"
    async with Server(url) as target:
        with pytest.raises(BenchError, match=f"cannot reach {url}"):
            await target.first_model()
        async with target.client() as http:
            record = await stream_request(http, "/v1/completions", b"{}")
    assert record.error is not None
    assert "ConnectError" in record.error
