"""How do ten times more clients than there is room for affect the admitted ones?

At first there are as many clients as rows and places in the queue, then ten times as many. Each client sends requests
again and again, and waits as long as `Retry-After` says when it is refused. Every status has to be 200 or 429, and the
first tokens of admitted requests may not come much later than before. Exits with 1 otherwise.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter

import httpx
import psutil
from common import ServerProcess, forget_shapes, paceline_serve, print_table, write_result

_MOST_TIMES_TTFT = 1.5
_MOST_GROWTH = 64 * 2**20


class Crowd:
    """Clients that ask until their time is over, and what they saw."""

    def __init__(self, url: str, tokens: int) -> None:
        parts = httpx.URL(url)
        self._address = parts.host, parts.port
        self._tokens = tokens
        self.statuses: Counter[int] = Counter()
        self.ttfts: list[float] = []

    async def ask(self, number: int, seconds: float) -> None:
        """As `number` clients, each with a connection of its own."""
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._client(index, until) for index in range(number)))

    async def _client(self, index: int, until: float) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        turn = 0
        while time.perf_counter() < until:
            turn += 1
            prompt = f"Client {index} says for the {turn}th time:"
            wait = await self._one(reader, writer, prompt)
            await asyncio.sleep(max(0.0, min(wait, until - time.perf_counter())))
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prompt: str) -> float:
        """One request, without a client library, which would be slower than the server; seconds to wait after it."""
        body = json.dumps({"prompt": prompt, "max_tokens": self._tokens, "ignore_eos": True, "stream": True}).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(answer.split()[1])
        self.statuses[status] += 1
        if status != 200:
            await reader.readexactly(int(answer.partition("content-length: ")[2].split()[0]))
            return float(answer.partition("retry-after: ")[2].split()[0])
        await reader.readuntil(b"data: {")
        self.ttfts.append(time.perf_counter() - began)
        await reader.readuntil(b"\r\n0\r\n\r\n")
        return 0.0

    @property
    def ttft_p99(self) -> float:
        """Seconds."""
        return statistics.quantiles(self.ttfts, n=100)[98]


def _memory(server: ServerProcess) -> int:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return sum(child.memory_info().rss for child in children)


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two parts")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--queue", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    room = args.rows + args.queue
    flags = ["--max-num-seqs", str(args.rows), "--max-queue", str(args.queue), "--max-model-len", "512"]
    flags += ["--num-kv-blocks", "256"]  # which the first part fills: memory that is new later has another reason
    forget_shapes()
    with paceline_serve(*flags) as server:
        usual, crowded = Crowd(server.url, args.tokens), Crowd(server.url, args.tokens)
        asyncio.run(usual.ask(room, args.seconds))
        before = _memory(server)
        asyncio.run(crowded.ask(10 * room, args.seconds))
        growth = _memory(server) - before
    rows = [
        (name, number, crowd.statuses[200], crowd.statuses[429], crowd.ttft_p99 * 1000)
        for name, number, crowd in (("room", room, usual), ("ten times", 10 * room, crowded))
    ]
    print_table(("clients", "number", "200", "429", "TTFT p99 ms"), rows)
    ratio = crowded.ttft_p99 / usual.ttft_p99
    print(f"\nTTFT p99: {ratio:.2f} times; memory: {growth / 2**20:+.1f} MiB")
    header = ("clients", "number", "ok", "refused", "ttft_p99_ms")
    parts = [dict(zip(header, row, strict=True)) for row in rows]
    write_result(args, {"parts": parts, "ttft_p99_ratio": ratio, "memory_growth": growth})
    others = set(usual.statuses + crowded.statuses) - {200, 429}
    sys.exit(bool(others) or ratio > _MOST_TIMES_TTFT or growth > _MOST_GROWTH)


if __name__ == "__main__":
    main()
