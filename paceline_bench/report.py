"""Turns records into figures: percentiles, a table for people, JSON for programs.

Definitions (all times as the client sees them):

- TTFT: first token event minus start.
- TPOT: (last token event - first) / (output tokens - 1), one value for each request.
- ITL: gap between two successive token events of one request; an event may hold more than one token.
- E2E: last token event minus start.
- Throughput: tokens of all requests that did not fail / seconds from the first start to the last token event.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.table import Table

from .client import Record
from .runner import Run

_MAX_ERRORS = 5
_SATURATED = 0.9


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of times, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Distribution | None":
        """Mean and percentiles (linear between neighbours, as numpy's); None without values."""
        ms = [1000 * value for value in seconds]
        if not ms:
            return None
        cuts = statistics.quantiles(ms, n=100, method="inclusive") if len(ms) > 1 else ms * 99
        return cls(statistics.fmean(ms), cuts[49], cuts[89], cuts[98], max(ms))


@dataclass(frozen=True)
class Summary:
    """The figures of one load. Times and throughput are those of requests that did not fail."""

    label: str
    concurrency: int | None
    rate: float | None
    requests: int
    failed: int
    unfinished: int
    """Requests that were in flight when the run was interrupted; counted nowhere else."""
    errors: list[str]
    """The first distinct errors."""
    wall_s: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    out_tok_s: float
    total_tok_s: float
    req_s: float
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    start_delay_ms: Distribution | None
    """How much later than planned an open loop's requests started; large values mean a saturated client."""
    tokens_per_event: float
    short_outputs: int
    """Requests that gave another number of tokens than requested."""
    client_cpu: float
    """The client's share of one core."""


def summarize(run: Run) -> Summary:
    """The figures of a run, finished or not."""
    load = run.workload
    done = [record for record in run.records if record.error is None]
    wall = max(r.event_times[-1] for r in done) - min(r.start for r in done) if done else 0.0
    num_in = sum(load.input_len if r.prompt_tokens is None else r.prompt_tokens for r in done)
    num_out = sum(r.output_tokens for r in done)
    return Summary(
        label=load.label,
        concurrency=load.concurrency,
        rate=load.rate,
        requests=len(run.records),
        failed=len(run.records) - len(done),
        unfinished=run.in_flight,
        errors=list(dict.fromkeys(r.error for r in run.records if r.error is not None))[:_MAX_ERRORS],
        wall_s=wall,
        input_tokens=num_in,
        cached_tokens=sum(r.cached_tokens for r in done),
        output_tokens=num_out,
        out_tok_s=_per_second(num_out, wall),
        total_tok_s=_per_second(num_in + num_out, wall),
        req_s=_per_second(len(done), wall),
        ttft_ms=Distribution.of(r.ttft for r in done),
        tpot_ms=Distribution.of(_tpot(r) for r in done if r.output_tokens > 1),
        itl_ms=Distribution.of(b - a for r in done for a, b in pairwise(r.event_times)),
        e2e_ms=Distribution.of(r.event_times[-1] - r.start for r in done),
        start_delay_ms=Distribution.of(r.delay for r in done) if load.rate is not None else None,
        tokens_per_event=num_out / max(1, sum(len(r.event_times) for r in done)),
        short_outputs=sum(r.output_tokens != load.output_len for r in done),
        client_cpu=run.client_cpu,
    )


def _tpot(record: Record) -> float:
    return (record.event_times[-1] - record.event_times[0]) / (record.output_tokens - 1)


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def print_report(summaries: Sequence[Summary], console: Console) -> None:
    """Print throughput and percentiles of each load, then what a reader must know to trust them."""
    throughput = Table("load", title="Throughput", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("ok", "failed", "req/s", "out tok/s", "total tok/s", "client CPU"):
        throughput.add_column(name, justify="right")
    latency = Table("load", "ms", title="Latency", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("mean", "p50", "p90", "p99"):
        latency.add_column(name, justify="right")
    for s in summaries:
        rates = (f"{s.req_s:.2f}", f"{s.out_tok_s:,.1f}", f"{s.total_tok_s:,.1f}", f"{s.client_cpu:.0%}")
        throughput.add_row(s.label, str(s.requests - s.failed), str(s.failed), *rates)
        rows = {"TTFT": s.ttft_ms, "TPOT": s.tpot_ms, "ITL": s.itl_ms, "E2E": s.e2e_ms}
        for row, (name, times) in enumerate(rows.items()):
            figures = (times.mean, times.p50, times.p90, times.p99) if times else ()
            cells = [f"{value:,.1f}" for value in figures] or ["-"] * 4
            latency.add_row("" if row else s.label, name, *cells, end_section=name == "E2E")
    console.print(throughput, latency)
    for s in summaries:
        for note in _notes(s):
            console.print(f"{s.label}: {note}", markup=False, highlight=False, soft_wrap=True)


def _notes(s: Summary) -> Iterable[str]:
    if s.failed:
        yield f"{s.failed} of {s.requests} requests failed:"
        yield from (f"  {error}" for error in s.errors)
    if s.unfinished:
        yield f"interrupted; {s.unfinished} requests were in flight and are not counted"
    if s.short_outputs:
        yield f"{s.short_outputs} requests gave another number of tokens than was asked for"
    if s.cached_tokens:
        yield f"{s.cached_tokens / s.input_tokens:.0%} of the prompt tokens came from the server's prefix cache"
    if s.client_cpu > _SATURATED:
        yield "the client was busy all the time: the server may be faster than these figures"


def to_json(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    """Plain values for a JSON file; milliseconds and rates are rounded to a thousandth."""
    return [_rounded(dataclasses.asdict(summary)) for summary in summaries]


def _rounded(values: dict[str, object]) -> dict[str, object]:
    def short(value: object) -> object:
        if isinstance(value, dict):
            return _rounded(value)
        return round(value, 3) if isinstance(value, float) else value

    return {name: short(value) for name, value in values.items()}
