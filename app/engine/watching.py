"""The API side of the reports of steps: asks the engine for them while somebody watches, and hands out the latest."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from ..core.step_report import StepReport
from ..core.wire import WATCH_SECONDS


class Watching:
    """Those who watch the engine's steps through this API worker.

    The engine is asked again and again: so it stops when this process dies, and the next engine is asked, too. It
    answers each time, also when it is idle.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        """`ask` asks the engine for reports for WATCH_SECONDS, if there is an engine."""
        self._ask = ask
        self._num_watchers = 0
        self._asking: asyncio.Task[None] | None = None
        self._latest: StepReport | None = None
        self._changed = asyncio.Condition()
        self._is_closed = False

    async def take(self, report: StepReport) -> None:
        """Hand a report to everybody."""
        self._latest = report
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End the reports."""
        self._is_closed = True
        async with self._changed:
            self._changed.notify_all()

    async def reports(self) -> AsyncGenerator[StepReport, None]:
        """See `EngineClient.step_reports`."""
        self._num_watchers += 1
        if self._asking is None:
            self._latest = None  # of the last time that somebody watched
            self._asking = asyncio.create_task(self._ask_again_and_again())
        seen: StepReport | None = None
        try:
            while not self._is_closed:
                async with self._changed:
                    if self._latest is seen:
                        await self._changed.wait()
                if self._latest is not None and self._latest is not seen:
                    seen = self._latest
                    yield seen
        finally:
            self._num_watchers -= 1
            if not self._num_watchers and self._asking is not None:
                self._asking.cancel()
                self._asking = None

    async def _ask_again_and_again(self) -> None:
        while True:
            self._ask()
            await asyncio.sleep(WATCH_SECONDS / 3)
