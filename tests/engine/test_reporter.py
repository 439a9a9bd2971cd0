"""What those who watch the batch are told, compared with the scheduler's own tables and with what clients got."""

from collections import Counter
from itertools import pairwise

from app.core.request import Request
from app.core.step_report import StepReport
from app.core.wire import WATCH_SECONDS, StepOutputs
from app.engine.reporter import Reporter
from app.worker.echo import EchoWorker
from tests.engine.test_core import ROWS, command, make_core

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]
"""Two full blocks, and a token."""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_reports_say_what_happened() -> None:
    core, clock = make_core(EchoWorker(ROWS), overlap=True), Clock()
    reporter, messages, reports = Reporter(core, clock, clock), list[StepOutputs](), list[StepReport]()
    core.add(command("unseen", [1, 2], max_tokens=2))
    while core.has_work:
        reporter.take_outputs(core.step())
    assert (core.on_step, reporter.report()) == (None, None)

    reporter.watch(b"0")
    for index in range(ROWS + 2):
        core.add(command(f"secret {index}", PROMPT, max_tokens=6 + index, arrived_at=index))
    while core.has_work or reporter.is_pending:
        if core.has_work:
            messages.append(core.step())
            reporter.take_outputs(messages[-1])
        clock.now += 0.04
        if made := reporter.report():
            assert made[0] == [b"0"]
            reports.append(made[1])
            _check_blocks(made[1], core.scheduler.requests)
            waiting = len(core.scheduler.requests) - len(core.scheduler.running)
            assert sum(tenant.waiting for tenant in made[1].tenants) == waiting

    assert len(reports) > 3
    assert all(later.at - earlier.at >= 0.099 for earlier, later in pairwise(reports))
    outputs = [output for message in messages for output in message.outputs]
    counts = [report.counts for report in reports]
    assert sum(count.output_tokens for count in counts) == sum(len(output.token_ids) for output in outputs)
    assert sum(count.left for count in counts) == sum(count.joined for count in counts) == ROWS + 2
    assert sum(count.steps for count in counts) == sum(m.stats.step_tokens > 0 for m in messages if m.stats)
    computed = sum(m.stats.step_tokens for m in messages if m.stats)
    assert 0 < sum(count.prompt_tokens for count in counts) < computed
    assert {row.number for report in reports for row in report.rows} == set(range(1, ROWS + 3))
    assert max(len(report.rows) for report in reports) == ROWS
    assert (reports[-1].rows, reports[-1].tenants) == ([], [])
    assert any(3 in report.kv[0].states for report in reports), "nobody shared the prompt"
    assert "secret" not in repr(reports)


def _check_blocks(report: StepReport, requests: dict[str, Request]) -> None:
    """The map of blocks is that of the requests' tables."""
    holders = Counter(block for request in requests.values() for table in request.block_tables for block in table)
    states = report.kv[0].states
    assert len(states) == report.kv[0].num_blocks == 64
    for block, state in enumerate(states):
        assert state == min(holders[block], 2) + 1 if holders[block] else state in (0, 1)
    assert report.kv[0].num_used == len(holders)
    assert report.kv[0].num_cached == states.count(1)


def test_whoever_asks_no_more_is_told_nothing() -> None:
    core, clock = make_core(EchoWorker(ROWS), overlap=False), Clock()
    reporter = Reporter(core, clock, clock)
    reporter.watch(b"0")
    assert reporter.report() is not None, "an idle engine tells how it is"
    assert reporter.report() is None
    core.add(command("one", [1, 2], max_tokens=60))
    clock.now += WATCH_SECONDS / 2
    reporter.watch(b"1")
    clock.now += WATCH_SECONDS * 0.6
    reporter.take_outputs(core.step())
    assert (made := reporter.report()) is not None
    assert made[0] == [b"1"]
    clock.now += WATCH_SECONDS
    reporter.take_outputs(core.step())
    assert reporter.report() is None
    assert core.on_step is None
    assert not reporter.is_pending
