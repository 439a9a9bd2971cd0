"""Runs one workload: starts each request in time, and keeps what was measured."""

import asyncio
import math
from time import perf_counter, process_time

from .client import Record, Server, stream_request
from .workload import Workload


class Run:
    """A workload and its records so far, which can be read while it runs and after it was cancelled."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.records: list[Record] = []
        """Records of requests that have ended, in the order of their ends."""
        self.in_flight = 0
        """Records of requests that were cut off by a cancellation."""
        self.token_events = 0
        """Counts all requests, including those in flight."""
        self._began = perf_counter()
        self._cpu_began = process_time()
        self._cpu: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of the run."""
        return perf_counter() - self._began

    @property
    def client_cpu(self) -> float:
        """This process's share of one core during the run. Near 1: the client, not the server, was the limit."""
        return self._cpu_share() if self._cpu is None else self._cpu

    async def execute(self, server: Server) -> None:
        """Send all requests and wait until they end."""
        self._began, self._cpu_began = perf_counter(), process_time()
        try:
            if self.workload.rate is None:
                await self._closed_loop(server)
            else:
                await self._open_loop(server)
        finally:
            self._cpu = self._cpu_share()

    def _cpu_share(self) -> float:
        return (process_time() - self._cpu_began) / max(self.elapsed, 1e-9)

    async def _closed_loop(self, server: Server) -> None:
        """Run as many lanes as the concurrency. Each starts a request when its last one has ended."""
        indices = self.workload.indices()
        duration = math.inf if self.workload.duration is None else self.workload.duration

        async def lane() -> None:
            for index in indices:
                if self.elapsed >= duration:
                    return
                await self._request(server, index)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.workload.concurrency or 1):
                tasks.create_task(lane())

    async def _open_loop(self, server: Server) -> None:
        """Start requests when they are due, however many are in flight."""
        async with asyncio.TaskGroup() as tasks:
            for index, offset in enumerate(self.workload.arrivals()):
                due = self._began + offset
                await asyncio.sleep(max(0.0, due - perf_counter()))
                tasks.create_task(self._request(server, index, due))

    async def _request(self, server: Server, index: int, due: float | None = None) -> None:
        body = self.workload.body(index)
        self.in_flight += 1
        async with server.client() as http:
            record = await stream_request(http, self.workload.path, body, self._on_token_event)
        self.in_flight -= 1
        if due is not None:
            record.delay = max(0.0, record.start - due)
        self.records.append(record)

    def _on_token_event(self) -> None:
        self.token_events += 1
