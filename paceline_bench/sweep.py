"""Runs one workload after the other against one server."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from .client import Server, stream_request
from .errors import BenchError
from .live import shown
from .report import Summary, summarize
from .runner import Run
from .workload import Workload

_WARMUP = -1  # a request's number that no run uses


@dataclass(frozen=True)
class SweepResult:
    """The results of a sweep."""

    model: str | None
    """None if the sweep was interrupted before the model was known."""
    summaries: list[Summary]
    interrupted: bool


def sweep(
    url: str, workloads: Sequence[Workload], console: Console, api_key: str | None = None, timeout: float = 600.0
) -> SweepResult:
    """Run the workloads and show their progress on `console`. Ctrl-C ends it early; what was measured is returned.

    One unmeasured request goes before them. `timeout`: the longest silence of a request, in seconds.
    Raises BenchError if the server cannot be reached, or names no model and the workloads name none.
    """
    runs: list[Run] = []

    async def execute() -> None:
        async with Server(url, api_key, timeout) as server:
            served = await server.first_model()
            for workload in workloads:
                if not (model := workload.model or served):
                    raise BenchError(f"{url} does not list its models at /v1/models; name one with --model")
                run = Run(replace(workload, model=model))
                if not runs:
                    async with server.client() as http:
                        await stream_request(http, run.workload.path, run.workload.body(_WARMUP))
                runs.append(run)
                async with shown(run, console):
                    await run.execute(server)

    interrupted = False
    try:
        asyncio.run(execute())
    except KeyboardInterrupt:
        interrupted = True
    model = runs[0].workload.model if runs else None
    return SweepResult(model, [summarize(run) for run in runs], interrupted)
