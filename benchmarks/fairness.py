"""How does one tenant's flood delay another tenant's first token?

A quiet tenant sends one request after the other: alone, and while another tenant keeps all rows and the queue full with
one of two floods: short prompts and long answers, or the other way round. The time to its first token may at most
double, not counting the step that runs when its request arrives: no scheduler can take that step back, and a prompt of
a few words takes less time than a step. Exits with 1 if a median is above that. Arguments behind `--` go to
`paceline serve`.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from common import ServerProcess, paceline_serve, print_table, write_result

from app.tenants import digest_of

_QUIET, _FLOOD = "quiet", "flood"
_WORDS = (5, 200, 800)
"""Of the quiet tenant's prompts: a token each."""
_FLOODS = {"answers": {"words": 5, "n": 8, "max_tokens": 150}, "prompts": {"words": 600, "n": 1, "max_tokens": 8}}
_CROWD = 1.25
"""Requests of a flood at a time, over rows."""
_PAUSES = 0.3, 0.7
"""Seconds between the quiet tenant's requests: without a pause it is not quiet, and with equal ones not at random."""


class Service:
    """The server, as its two tenants use it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False, limits=limits)
        self._numbers = itertools.count()
        self._chance = random.Random(0)

    def _request(self, tenant: str, words: int, **body: int) -> dict[str, Any]:
        """One with a prompt that no other has: nothing comes out of the prefix cache."""
        return {
            "url": "/v1/completions",
            "json": {"prompt": f"{next(self._numbers)}" + " word" * words, "ignore_eos": True, **body},
            "headers": {"Authorization": f"Bearer {tenant}"},
        }

    async def first_token(self, words: int) -> float:
        """Seconds to the quiet tenant's first token."""
        began = time.perf_counter()
        request = self._request(_QUIET, words, max_tokens=2, stream=True)
        async with self._http.stream("POST", **request) as answer:
            answer.raise_for_status()
            seconds = [time.perf_counter() - began async for line in answer.aiter_lines() if line.startswith("data: {")]
        await asyncio.sleep(self._chance.uniform(*_PAUSES))
        return seconds[0]

    @asynccontextmanager
    async def flooded(self, rows: int, words: int, **body: int) -> AsyncIterator[None]:
        """While the other tenant has more requests than there are rows, all the time."""

        async def client() -> None:
            while True:
                answer = await self._http.post(**self._request(_FLOOD, words, **body))
                answer.raise_for_status()

        tasks = [asyncio.create_task(client()) for _ in range(int(_CROWD * rows / body["n"]))]
        before = self.steps()
        while self.steps()[1] < before[1] + 100:  # until it is in full flow
            await asyncio.sleep(0.1)
        yield
        for task in tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def steps(self) -> tuple[float, int]:
        """Seconds and number of all steps so far."""
        total, number = (self._server.metric(f"step_duration_seconds_{of}") for of in ("sum", "count"))
        return total, int(number)


async def _measure(server: ServerProcess, rows: int, rounds: int) -> list[dict[str, Any]]:
    service = Service(server)
    for words in _WORDS:  # the chunk pacer learns
        await service.first_token(words)
    alone = {words: [await service.first_token(words) for _ in range(rounds)] for words in _WORDS}
    results: list[dict[str, Any]] = []
    for name, body in _FLOODS.items():
        async with service.flooded(rows, **body):
            before = service.steps()
            crowded = {words: [await service.first_token(words) for _ in range(rounds)] for words in _WORDS}
            after = service.steps()
        step = (after[0] - before[0]) / (after[1] - before[1])
        for words in _WORDS:
            one, other = (statistics.median(seconds[words]) for seconds in (alone, crowded))
            row = {"alone_ms": one * 1000, "flooded_ms": other * 1000, "ratio": other / one, "step_ms": step * 1000}
            results.append({"flood": name, "words": words, **row, "ok": other <= 2 * one + step})
    return results


def _keys() -> str:
    tenants = [{"name": name, "keys": [digest_of(name)]} for name in (_QUIET, _FLOOD)]
    return json.dumps({"tenants": tenants})


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="requests of each length, alone and in each flood")
    parser.add_argument("--model", type=Path, help="default: the one that `paceline serve` has")
    parser.add_argument("--rows", type=int, default=64, help="the service's max_num_seqs")
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        keys.write_text(_keys())
        flags = ["--api-keys", str(keys), "--public-metrics", "--max-model-len", "2048"]
        flags += ["--max-num-seqs", str(args.rows), *args.serve]
        flags += ["--model", str(args.model.absolute())] if args.model else []
        with paceline_serve(*flags) as server:
            results = asyncio.run(_measure(server, args.rows, args.rounds))
    print_table(list(results[0]), [list(row.values()) for row in results])
    write_result(args, {"rows": results}, args.model.name if args.model else "")
    sys.exit(0 if all(row["ok"] for row in results) else 1)


if __name__ == "__main__":
    main()
