"""Does the service lose anything over time? Many short requests, some of which are broken off at random moments.

Afterwards no request may run, no KV block may be held, no file descriptor may be lost, and memory has to be what it was
after the first half. Exits with 1 otherwise. Without a model this tests the service itself; with a model it also
tests the worker's memory.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable

import httpx
import psutil
from common import ServerProcess, forget_shapes, paceline_serve, print_table, write_result

_CLIENTS = 32
_MAX_GROWTH = 32 * 2**20
_SETTLE_SECONDS = 10


async def _ask(http: httpx.AsyncClient, url: str, index: int, chance: random.Random, tokens: int) -> None:
    """One request; a third of them are broken off."""
    body = {"prompt": f"again {index:05}", "max_tokens": chance.randint(1, tokens), "ignore_eos": True}
    patience = chance.uniform(0, 0.05) if index % 3 == 0 else None
    try:
        async with asyncio.timeout(patience):
            answer = await http.post(f"{url}/v1/completions", json={**body, "stream": bool(index % 2)})
        answer.raise_for_status()
    except TimeoutError:
        pass


async def _run(url: str, indices: range, seed: int, tokens: int) -> None:
    chance, left = random.Random(seed), iter(indices)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:

        async def client() -> None:
            for index in left:
                await _ask(http, url, index, chance, tokens)

        await asyncio.gather(*(client() for _ in range(_CLIENTS)))


def _until(condition: Callable[[], bool]) -> bool:
    """Wait until something holds; whether it came to that."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _settled(server: ServerProcess) -> bool:
    """Wait until nothing runs, waits, or holds blocks."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")
    return _until(lambda: not any(map(server.metric, names)))


def _resources(server: ServerProcess) -> tuple[int, int]:
    """Bytes and file descriptors of all of the service's processes."""
    root = psutil.Process(server.process.pid)
    processes = [root, *root.children(recursive=True)]
    return sum(p.memory_info().rss for p in processes), sum(p.num_fds() for p in processes)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", default="echo", choices=("echo", "model"))
    parser.add_argument("--tokens", type=int, default=64, help="the longest answers")
    parser.add_argument("--no-result", action="store_true", help="leave results/ as it is: for tests")
    options = parser.parse_args()
    first = options.requests // 2
    forget_shapes()
    # So few blocks that all are used in the first part: memory that is new later has another reason.
    with paceline_serve("--worker", options.worker, "--num-kv-blocks", "512", "--max-model-len", "512") as server:
        asyncio.run(_run(server.url, range(first), options.seed, options.tokens))
        balanced = _settled(server)
        memory, descriptors = _resources(server)
        asyncio.run(_run(server.url, range(first, options.requests), options.seed + 1, options.tokens))
        balanced = _settled(server) and balanced
        _until(lambda: _resources(server)[1] <= descriptors)  # the last connections may still be closing
        grown, lost = (now - then for now, then in zip(_resources(server), (memory, descriptors), strict=True))
    rows = [["requests", options.requests], ["all blocks free, nothing running", balanced]]
    rows += [["memory grown, MiB", f"{grown / 2**20:.1f}"], ["file descriptors lost", lost]]
    print_table(["figure", "measured"], rows)
    if not options.no_result:
        write_result(options, {"is_balanced": balanced, "bytes_grown": grown, "descriptors_lost": lost}, options.worker)
    sys.exit(0 if balanced and grown < _MAX_GROWTH and lost <= 0 else 1)


if __name__ == "__main__":
    main()
