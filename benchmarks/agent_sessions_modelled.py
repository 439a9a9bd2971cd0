"""Agents' sessions of full size, with the real scheduler and KV cache, and a device that is only modelled.

    python benchmarks/agent_sessions_modelled.py    # about two minutes

What is computed twice depends on planning alone, so it can be seen without a model. Time is modelled, too: a step takes
some time by itself, and for each prompt token and each block that is copied. The defaults are near what was measured
with Llama-3.1-8B on an H200, whose blocks of 16 tokens have 2 MiB. Beside the sessions, other clients send prompts that
never come again.
"""

import argparse
import heapq
import math
import random
import statistics
from itertools import count
from typing import Any

from common import print_table, write_result

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import HostMemory, KVGroup, ModelRunnerOutput, SchedulerOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone

BLOCK_SIZE, MOST_TOKENS, MOST_ROWS = 16, 8192, 256
TOOL_SECONDS = 1.0, 60.0
COMMON, FIRST = 1 / 8, 1 / 4
"""Of the length: what all sessions begin with, and the first prompt."""
HEADER = ("prompt tokens", "computed", "from host", "TTFT p50 ms", "TTFT p99 ms")


class Model:
    """All sessions and other clients, in modelled time."""

    def __init__(self, args: argparse.Namespace, num_blocks: int, num_places: int, retention: float) -> None:
        self._args, self._retention = args, retention
        self._now = 0.0
        host = HostMemory((num_places,), args.block_ms / 1000) if num_places else None
        pacer = ChunkPacer(0.05, BLOCK_SIZE, MOST_TOKENS)
        self._scheduler = Scheduler(
            KVCache([KVGroup(num_blocks)], BLOCK_SIZE, MOST_TOKENS, host=host),
            pacer,
            Alone(pacer),
            max_num_seqs=MOST_ROWS,
            max_num_batched_tokens=MOST_TOKENS,
            max_model_len=args.length + args.max_tokens,
            clock=lambda: self._now,
        )
        self._rng, self._ids = random.Random(0), count()
        common = self._tokens(int(args.length * COMMON))
        self._texts = [common + self._tokens(args.length - len(common)) for _ in range(args.sessions)]
        self._due: list[tuple[float, int, int, int]] = []  # time, a number to order by, session (or -1) and turn
        for session in range(args.sessions):
            self._later(session, 0)
        for _ in range(args.others):
            self._later(-1, 0)
        self._open: dict[str, tuple[Request, int, int]] = {}
        self._left = args.sessions * args.turns
        self._ended: list[tuple[int, int, float]] = []  # of turns: prompt tokens, cached ones, seconds to the first

    def run(self) -> dict[str, float]:
        """The figures of a replay."""
        from_host = 0
        while self._left:
            while self._due and self._due[0][0] <= self._now:
                _, _, session, turn = heapq.heappop(self._due)
                self._ask(session, turn)
            step = self._scheduler.schedule()
            if step is None:
                self._now = self._due[0][0]
                continue
            seconds = self._seconds(step)
            self._now += seconds
            tokens = [[7] if self._open[name][0].num_in_flight else [] for name in step.request_ids]
            outputs = self._scheduler.update(step, ModelRunnerOutput(tokens), seconds)
            from_host += self._scheduler.take_stats(0, 0.0).host_cache_hits
            for output in outputs:
                if output.finish_reason is not None:
                    self._end(output.request_id)
        prompts, cached, seconds_to_first = zip(*self._ended, strict=True)
        ttfts = sorted(1000 * seconds for seconds in seconds_to_first)
        figures = (
            sum(prompts),
            sum(prompts) - sum(cached),
            from_host,
            statistics.median(ttfts),
            ttfts[math.ceil(0.99 * len(ttfts)) - 1],
        )
        return dict(zip(HEADER, figures, strict=True))

    def _tokens(self, length: int) -> list[int]:
        return self._rng.choices(range(100, 32_000), k=length)

    def _later(self, session: int, turn: int) -> None:
        shortest, longest = map(math.log, TOOL_SECONDS)
        pause = math.exp(self._rng.uniform(shortest, longest))
        heapq.heappush(self._due, (self._now + pause, next(self._ids), session, turn))

    def _ask(self, session: int, turn: int) -> None:
        args = self._args
        if session < 0:
            prompt, retention = self._tokens(args.others_length), 0.0
        else:
            first = int(args.length * FIRST)
            length = first + (args.length - first) * turn // max(1, args.turns - 1)
            prompt, retention = self._texts[session][:length], self._retention
        sampling, name = SamplingParams(max_tokens=args.max_tokens, seed=0), str(next(self._ids))
        request = Request(name, list(prompt), len(prompt), sampling, self._now, cache_retention=retention)
        self._open[name] = request, session, turn
        self._scheduler.add(request)

    def _seconds(self, step: SchedulerOutput) -> float:
        num_decodes, num_prompt = step.decodes_and_prompt_tokens
        # A copy there and back is two: each is half of it.
        copies = sum(len(of_group.out) + len(of_group.into) for of_group in step.copies) / 2
        args = self._args
        return (
            args.step_ms + num_prompt * args.token_ms + num_decodes * args.decode_ms + copies * args.block_ms
        ) / 1000

    def _end(self, name: str) -> None:
        request, session, turn = self._open.pop(name)
        if session < 0:
            self._later(-1, 0)
            return
        self._left -= 1
        cached, waited = request.num_cached_tokens, request.first_token_at - request.arrived_at
        self._ended.append((request.num_prompt_tokens, cached, waited))
        if turn + 1 < self._args.turns:
            self._later(session, turn + 1)


def main() -> None:
    """Replay with each way of caching, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--turns", type=int, default=43, help="of each session")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a session's last prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--others", type=int, default=32, help="clients whose prompts never come again")
    parser.add_argument("--others-length", type=int, default=4096, help="tokens of their prompts")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8192, 16384], help="KV blocks of the device")
    parser.add_argument("--places", type=int, default=32768, help="blocks in host memory")
    parser.add_argument("--step-ms", type=float, default=4.0, help="of a step by itself")
    parser.add_argument("--decode-ms", type=float, default=0.03, help="of a request that generates")
    parser.add_argument("--token-ms", type=float, default=0.03, help="of a prompt token")
    parser.add_argument("--block-ms", type=float, default=0.1, help="of a block there and back")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for blocks in args.blocks:
        ways = {
            "least recently used": (blocks, 0, 0.0),
            "kept by wish": (blocks, 0, 3600.0),
            "host memory": (blocks, args.places, 0.0),
            "kept by wish, and host memory": (blocks, args.places, 3600.0),
            "as many blocks without copies": (blocks + args.places, 0, 0.0),
        }
        for name, (num_blocks, num_places, retention) in ways.items():
            results[f"{blocks} blocks, {name}"] = Model(args, num_blocks, num_places, retention).run()
    print_table(("", *HEADER), [(name, *figures.values()) for name, figures in results.items()])
    write_result(args, {"ways": results})


if __name__ == "__main__":
    main()
