"""How much a shared prefix saves: TTFT of the second request with a prefix, compared with that of the first."""

import argparse
import asyncio
import json
import random
import statistics

import httpx
from common import ServerProcess, paceline_serve, print_table, write_result

from paceline_bench.client import Record, stream_request
from paceline_bench.workload import PATHS

_TOKEN_IDS = range(100, 32_000)


async def ask(http: httpx.AsyncClient, model: str, prompt: list[int]) -> Record:
    """One request with a short answer. Raises RuntimeError if it fails."""
    body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    record = await stream_request(http, PATHS["completions"], json.dumps(body).encode())
    if record.error:
        raise RuntimeError(record.error)
    return record


async def measure(server: ServerProcess, args: argparse.Namespace) -> list[tuple[Record, Record]]:
    """First and second request of each prefix, one at a time; their last tokens differ."""
    rng = random.Random(args.seed)

    def tokens(count: int) -> list[int]:
        return rng.choices(_TOKEN_IDS, k=count)

    model = server.model()
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as http:
        await ask(http, model, tokens(args.prefix_len))  # warms up; no other request shares it
        pairs = []
        for _ in range(args.prefixes):
            prefix = tokens(args.prefix_len)
            first = await ask(http, model, prefix + tokens(args.suffix_len))
            second = await ask(http, model, prefix + tokens(args.suffix_len))
            pairs.append((first, second))
    return pairs


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix-len", type=int, default=1000, help="tokens that two requests share")
    parser.add_argument("--suffix-len", type=int, default=16, help="tokens that they do not share")
    parser.add_argument("--prefixes", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with paceline_serve() as server:
        pairs = asyncio.run(measure(server, args))
    rows = [
        (1000 * first.ttft, 1000 * second.ttft, second.ttft / first.ttft, second.cached_tokens)
        for first, second in pairs
    ]
    medians = tuple(statistics.median(column) for column in zip(*rows, strict=True))
    header = ("first TTFT ms", "second TTFT ms", "ratio", "cached tokens")
    print_table(("prefix", *header), [*((i, *row) for i, row in enumerate(rows, 1)), ("median", *medians)])
    write_result(args, {"median": dict(zip(header, medians, strict=True)), "prefixes": rows})


if __name__ == "__main__":
    main()
