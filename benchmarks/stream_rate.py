"""Tokens per second that one API worker streams to many readers, without a model.

A server that falls behind merges tokens into fewer, larger events. Tokens per second alone would then praise it for
streaming in bursts, so read them with `tokens per event`: only near 1 were tokens streamed one by one. The engine here
is not paced, so the worker is always offered more than it can send.

The readers are one process that only counts bytes, so that they cost little; `busy` shows each process's share of a
core. On a machine with fewer cores than processes the readers still take from the server.

With `--viewers 1`, every other round has somebody who watches the running batch (GET /v1/engine/steps): the medians of
both kinds of rounds say what that costs. `us/token` is processor time of the server, which other programs disturb less.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import psutil
import uvloop
from common import ServerProcess, paceline_serve, print_table, write_result

_PROMPT = "The riders of a paceline take turns at the front, and everybody goes faster than anyone would alone. "
_EVENT = b"data: {"
_DONE = b"data: [DONE]"
_MERGED = 1.1  # tokens per event
_TIMEOUT = 300.0  # seconds
_TAIL = 2048  # bytes: more than the events of usage and end


@dataclass(frozen=True)
class Counts:
    """What the readers saw in one round."""

    tokens: int
    events: int
    """Those with tokens."""
    seconds: float
    """From the first request to the end of the last answer."""
    cpu_seconds: float


class Reader(asyncio.Protocol):
    """Sends one request and counts the events of its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.events = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The number of output tokens, as the usage says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        # The bytes kept are too few to hold a whole mark, so none is counted twice.
        self.events += (self._tail[-len(_EVENT) + 1 :] + data).count(_EVENT)
        self._tail = (self._tail + data)[-_TAIL:]
        if _DONE in self._tail and not self.done.done():
            usage = re.search(rb'"completion_tokens": ?(\d+)', self._tail)
            self.done.set_result(int(usage[1]) if usage else 0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the answer ended early ({exc}): {self._tail.decode()}"))


class Viewer(asyncio.Protocol):
    """Watches the running batch, and reads what it is sent."""

    def __init__(self, host: str) -> None:
        self._request = f"GET /v1/engine/steps HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)


def read(url: str, model: str, clients: int, output_len: int, viewers: int = 0) -> Counts:
    """Stream `clients` answers at once, to `viewers` beside them; runs in a process of its own."""

    async def execute() -> Counts:
        loop, address = asyncio.get_running_loop(), urlsplit(url)
        request, at = _request(address.netloc, model, output_len), (str(address.hostname), address.port or 80)
        watching = [await loop.create_connection(lambda: Viewer(address.netloc), *at) for _ in range(viewers)]
        began, cpu_began = time.perf_counter(), time.process_time()
        connections = [await loop.create_connection(lambda: Reader(request), *at) for _ in range(clients)]
        readers = [reader for _, reader in connections]
        async with asyncio.timeout(_TIMEOUT):
            tokens = sum(await asyncio.gather(*(reader.done for reader in readers)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        for transport, _ in (*connections, *watching):
            transport.close()
        events = sum(reader.events - 1 for reader in readers)  # without the usage's
        return Counts(tokens, events, seconds, cpu)

    return uvloop.run(execute())


def _request(host: str, model: str, output_len: int) -> bytes:
    body = {"model": model, "prompt": _PROMPT, "max_tokens": output_len, "temperature": 0, "ignore_eos": True}
    content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _cpu_seconds(server: ServerProcess) -> dict[int, float]:
    """Processor time so far of the server's processes."""
    root = psutil.Process(server.process.pid)
    times = {process.pid: process.cpu_times() for process in (root, *root.children(recursive=True))}
    return {pid: t.user + t.system for pid, t in times.items()}


def measure(server: ServerProcess, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each round."""
    model = server.model()
    rounds: list[dict[str, object]] = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(read, (server.url, model, args.clients, 16))  # warms up
        for viewers in (0, args.viewers) * args.rounds if args.viewers else (0,) * args.rounds:
            before = _cpu_seconds(server)
            counts = pool.apply(read, (server.url, model, args.clients, args.output_len, viewers))
            if counts.tokens != args.clients * args.output_len:
                raise RuntimeError(f"{counts.tokens} tokens instead of {args.clients * args.output_len}")
            used = [cpu - before.get(pid, 0.0) for pid, cpu in _cpu_seconds(server).items()]
            rounds.append(
                {
                    "viewers": viewers,
                    "tokens_per_second": counts.tokens / counts.seconds,
                    "events_per_second": counts.events / counts.seconds,
                    "tokens_per_event": counts.tokens / counts.events,
                    "cpu_us_per_token": sum(used) / counts.tokens * 1e6,
                    "busy_server": sorted((round(cpu / counts.seconds, 2) for cpu in used), reverse=True),
                    "busy_readers": round(counts.cpu_seconds / counts.seconds, 2),
                }
            )
    return rounds


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--viewers", type=int, default=0, help="who watch the running batch in every other round")
    args = parser.parse_args()
    with paceline_serve("--worker", "echo") as server:
        rounds = measure(server, args)
    medians = [_medians(rounds, viewers) for viewers in sorted({0, args.viewers})]
    header = ("round", "viewers", "tok/s", "events/s", "tokens per event", "us/token", "busy server", "busy readers")
    rows = [(i, *r.values()) for i, r in enumerate(rounds, 1)]
    print_table(header, [*rows, *(("median", *median.values(), "", "") for median in medians)])
    if medians[0]["tokens_per_event"] > _MERGED:
        print("\nThe worker fell behind and merged tokens: it does not stream this many one by one.")
    write_result(args, {"median": medians[0], "rounds": rounds} | ({"viewed": medians[1]} if args.viewers else {}))


def _medians(rounds: list[dict[str, object]], viewers: int) -> dict[str, float]:
    """Of the rounds with so many viewers."""
    names = ("viewers", "tokens_per_second", "events_per_second", "tokens_per_event", "cpu_us_per_token")
    return {name: statistics.median(float(str(r[name])) for r in rounds if r["viewers"] == viewers) for name in names}


if __name__ == "__main__":
    main()
