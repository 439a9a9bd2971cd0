"""What agents' sessions wait for when their prompts do not fit the KV cache together: a replay.

    python benchmarks/agent_sessions.py    # some minutes on two idle cores
    python benchmarks/agent_sessions.py --sessions 32 --turns 43 --length 8192 --time-scale 1 --blocks 4096 \\
        --host 64GiB --larger 20480 --max-tokens 64 -- --model FOLDER --load-format dummy    # on a GPU

A session is a conversation that grows from turn to turn, evenly up to a length. Between its turns a tool runs, for 1 to
60 seconds (log-uniform) times the scale of time. The sessions' first tokens are common to all: instructions and tools.
Beside them, other clients send prompts that never come again. Tokens are random, and so are those that the next turn
has in the place of the answer.
"""

import argparse
import asyncio
import json
import math
import random
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx
from common import ServerProcess, paceline_serve, print_table, write_result

from paceline_bench.client import Record, stream_request
from paceline_bench.workload import PATHS

_TOKEN_IDS = range(100, 32_000)
_TOOL_SECONDS = 1.0, 60.0
_COMMON, _FIRST = 1 / 8, 1 / 4
"""Of the length: what all sessions begin with, and the first prompt."""
_HEADER = ("prompt tokens", "computed", "of these by turns", "from host", "TTFT p50 ms", "TTFT p99 ms", "seconds")


class Replay:
    """All sessions against one server."""

    def __init__(self, server: ServerProcess, args: argparse.Namespace, wishes: dict[str, Any]) -> None:
        """`wishes`: fields of the sessions' requests, which the others' do not have."""
        self._server = server
        self._args = args
        self._wishes = wishes
        self._model = server.model()
        self._turns: list[tuple[int, Record]] = []
        self._others: list[tuple[int, Record]] = []

    async def run(self) -> dict[str, float]:
        """The figures of a replay."""
        args, began = self._args, time.perf_counter()
        async with httpx.AsyncClient(base_url=self._server.url, timeout=600, trust_env=False) as self._http:
            others = [asyncio.create_task(self._send_others(number)) for number in range(args.others)]
            await asyncio.gather(*(self._play(number) for number in range(args.sessions)))
            for task in others:
                task.cancel()
        ttfts = sorted(1000 * record.ttft for _, record in self._turns)
        of_turns, of_others = _computed(self._turns), _computed(self._others)
        host = re.search(r'^paceline_prefix_cache_tier_hits_total\{tier="host"\} (\S+)$', self._server.metrics(), re.M)
        assert host
        figures = (
            sum(length for length, _ in self._turns + self._others),
            of_turns + of_others,
            of_turns,
            float(host[1]),
            statistics.median(ttfts),
            ttfts[math.ceil(0.99 * len(ttfts)) - 1],
            time.perf_counter() - began,
        )
        return dict(zip(_HEADER, figures, strict=True))

    async def _play(self, number: int) -> None:
        """One session. Its tokens and pauses are the same in all replays."""
        args, rng = self._args, random.Random(number)
        first = int(args.length * _FIRST)
        tokens = random.Random(-1).choices(_TOKEN_IDS, k=int(args.length * _COMMON))
        tokens += rng.choices(_TOKEN_IDS, k=args.length - len(tokens))
        await asyncio.sleep(self._pause(rng))
        for turn in range(args.turns):
            length = first + (args.length - first) * turn // max(1, args.turns - 1)
            self._turns.append((length, await self._ask(tokens[:length], self._wishes)))
            await asyncio.sleep(self._pause(rng))

    async def _send_others(self, number: int) -> None:
        rng = random.Random(1000 + number)
        while True:
            prompt = rng.choices(_TOKEN_IDS, k=self._args.others_length)
            self._others.append((len(prompt), await self._ask(prompt, {})))
            await asyncio.sleep(self._pause(rng))

    def _pause(self, rng: random.Random) -> float:
        shortest, longest = map(math.log, _TOOL_SECONDS)
        return math.exp(rng.uniform(shortest, longest)) * float(self._args.time_scale)

    async def _ask(self, prompt: list[int], wishes: dict[str, Any]) -> Record:
        body = {"model": self._model, "prompt": prompt, "max_tokens": self._args.max_tokens, "ignore_eos": True}
        body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **wishes}
        record = await stream_request(self._http, PATHS["completions"], json.dumps(body).encode())
        if record.error:
            raise RuntimeError(record.error)
        return record


def _computed(requests: Sequence[tuple[int, Record]]) -> int:
    """Prompt tokens that were not found in the cache."""
    return sum(length - record.cached_tokens for length, record in requests)


def main() -> None:
    """Replay with each way of caching, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6, help="of each session")
    parser.add_argument("--length", type=int, default=768, help="tokens of a session's last prompt")
    parser.add_argument("--max-tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--time-scale", type=float, default=0.1, help="what pauses are multiplied by")
    parser.add_argument("--others", type=int, default=2, help="clients whose prompts never come again")
    parser.add_argument("--others-length", type=int, default=384, help="tokens of their prompts")
    parser.add_argument("--blocks", type=int, default=160, help="KV blocks")
    parser.add_argument("--host", default="140MiB", help="size of host_kv_cache")
    parser.add_argument("--larger", type=int, default=558, help="KV blocks instead of host memory")
    parser.add_argument("flags", nargs="*", help="of paceline serve, behind --")
    args = parser.parse_args()
    blocks, larger = ("--num-kv-blocks", str(args.blocks)), ("--num-kv-blocks", str(args.larger))
    host, keep = ("--host-kv-cache", args.host), {"cache_retention": 3600 * args.time_scale}
    ways: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "least recently used": (blocks, {}),
        "kept by wish": (blocks, keep),
        "host memory": ((*blocks, *host), {}),
        "kept by wish, and host memory": ((*blocks, *host), keep),
        "as many blocks without copies": (larger, {}),
    }
    always = ("--speculate", "off", "--max-model-len", str(args.length + args.max_tokens), *args.flags)
    results = {}
    for name, (flags, wishes) in ways.items():
        with paceline_serve(*always, *flags) as server:
            results[name] = asyncio.run(Replay(server, args, wishes).run())
        print(name, results[name], flush=True)
    print_table(("", *_HEADER), [(name, *figures.values()) for name, figures in results.items()])
    write_result(args, {"ways": results})


if __name__ == "__main__":
    main()
