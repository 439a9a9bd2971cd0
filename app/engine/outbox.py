"""Outputs that wait until their API worker can receive them."""

from collections.abc import Callable

from ..core.step_report import StepReport
from ..core.wire import EngineMessage, EngineStats, RequestOutput, StepOutputs, StepReported


class Outbox:
    """News for one API worker: a message per step; one for all of the steps that it is behind.

    So a worker that is slower than the engine costs nobody memory or time, and gets less to do.
    """

    def __init__(self, send: Callable[[EngineMessage], bool]) -> None:
        """`send` returns whether the worker could take the message."""
        self._send = send
        self._outputs: dict[str, RequestOutput] = {}
        self._stats: EngineStats | None = None
        self._report: StepReport | None = None

    def put(self, output: RequestOutput) -> None:
        """Add news of a request, which may be changed here from now on."""
        earlier = self._outputs.setdefault(output.request_id, output)
        if earlier is not output:
            earlier.extend(output)

    def put_stats(self, stats: EngineStats | None) -> None:
        """Add what a step did."""
        if self._stats is None:
            self._stats = stats
        elif stats is not None:
            self._stats.extend(stats)

    def put_report(self, report: StepReport) -> None:
        """Add what the batch looks like now, for those who watch it through this worker."""
        if self._report is not None:
            report = report.behind(self._report)
        self._report = report

    def flush(self) -> bool:
        """Send what there is, if the worker can take it; whether nothing is left."""
        if self._outputs or self._stats is not None:
            if not self._send(StepOutputs(list(self._outputs.values()), self._stats)):
                return False
            self._outputs, self._stats = {}, None
        if self._report is not None:
            if not self._send(StepReported(self._report)):
                return False
            self._report = None
        return True
