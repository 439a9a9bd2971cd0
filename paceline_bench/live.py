"""Shows the progress of a run: a progress bar on a terminal, a line from time to time elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .runner import Run

_BAR_INTERVAL = 0.2  # seconds
_LINE_INTERVAL = 5.0


@asynccontextmanager
async def shown(run: Run, console: Console) -> AsyncIterator[None]:
    """Show the run's state until the block ends."""
    task = asyncio.create_task(_bar(run, console) if console.is_terminal else _lines(run, console))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _bar(run: Run, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        load = run.workload
        bar = progress.add_task(load.label, total=load.num_requests or load.duration, state="")
        try:
            while True:
                _update(progress, bar, run)
                await asyncio.sleep(_BAR_INTERVAL)
        finally:
            _update(progress, bar, run)


def _update(progress: Progress, bar: TaskID, run: Run) -> None:
    completed = len(run.records) if run.workload.num_requests else run.elapsed
    progress.update(bar, completed=completed, state=_state(run))


async def _lines(run: Run, console: Console) -> None:
    def show() -> None:
        console.print(f"{run.workload.label}: {_state(run)}", highlight=False, soft_wrap=True)

    try:
        while True:
            await asyncio.sleep(_LINE_INTERVAL)
            show()
    finally:
        show()


def _state(run: Run) -> str:
    rate = run.token_events / max(run.elapsed, 1e-9)
    return f"{len(run.records)} done, {run.in_flight} in flight, {rate:,.0f} tok/s"
