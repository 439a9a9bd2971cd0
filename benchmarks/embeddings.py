"""Embeddings per second through HTTP, compared with sentence-transformers' `encode` at the same batch size.

Both run the same weights on all cores, sentence-transformers in float32, and embed the same texts of mixed lengths.
Within each round one side follows the other, and has ended before the other's turn. Arguments behind `--` go to
`paceline serve`, such as `--dtype bfloat16`.
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from common import paceline_serve, print_table, write_result

WORDS = ("the", "cat", "house", "runs", "over", "bright", "old", "and", "then", "because", "never", "always")


def make_texts(count: int) -> list[str]:
    """Sentences of 3 to 60 words."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 60))) for _ in range(count)]


async def served(url: str, texts: list[str], batch: int, concurrency: int) -> float:
    """Embeddings a second: calls of `batch` texts, some at a time."""
    calls = [texts[at : at + batch] for at in range(0, len(texts), batch)]
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
        free = asyncio.Semaphore(concurrency)

        async def one(part: list[str]) -> None:
            async with free:
                body = {"input": part, "encoding_format": "base64"}
                answer = await http.post("/v1/embeddings", json=body)
                assert len(answer.raise_for_status().json()["data"]) == len(part)

        await one(calls[0])
        began = time.perf_counter()
        await asyncio.gather(*map(one, calls))
        return len(texts) / (time.perf_counter() - began)


def encoded(model: Path, texts: list[str], batch: int) -> float:
    """Embeddings a second of sentence-transformers, in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--model", str(model), "--batch", str(batch), "--count", str(len(texts)), "--local"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(result.stdout.split()[-1])


def run_local(model: Path, texts: list[str], batch: int) -> float:
    """What that process does."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    encoder.encode(texts[:batch], batch_size=batch)
    began = time.perf_counter()
    encoder.encode(texts, batch_size=batch)
    return len(texts) / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a sentence-transformers folder")
    parser.add_argument(
        "--batch", type=int, default=32, help="texts of a call, and of a batch of sentence-transformers"
    )
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    parser.add_argument("--local", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    texts = make_texts(args.count)
    if args.local:
        print(run_local(args.model, texts, args.batch))
        return
    rates: dict[str, list[float]] = {"served": [], "encode": []}
    for _ in range(args.rounds):
        with paceline_serve("--model", str(args.model), *args.serve) as server:
            rates["served"].append(asyncio.run(served(server.url, texts, args.batch, args.concurrency)))
        rates["encode"].append(encoded(args.model, texts, args.batch))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["served"] / medians["encode"]
    print_table(("served /s", "encode /s", "ratio"), [(medians["served"], medians["encode"], f"{ratio:.2f}")])
    write_result(args, {"embeddings_s": rates, "medians": medians, "ratio": ratio})


if __name__ == "__main__":
    main()
