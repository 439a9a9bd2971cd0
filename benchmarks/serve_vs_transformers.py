"""Output tokens per second through HTTP, compared with transformers' `generate` on a static batch of the same size.

Both run the same weights in bfloat16, greedy, on all cores. Within each round one side follows the other, in processes
of its own that have ended before the other's turn. A static batch is the best case for `generate`: all requests begin
and end together, without HTTP.
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

from common import ServerProcess, load, paceline_serve, print_table, write_result

from app.checkpoint.source import find_model

_TOKEN_IDS = (100, 32_000)
_WARMUP_TOKENS = 4


def served(server: ServerProcess, concurrency: int, seed: int, args: argparse.Namespace) -> float:
    """Output tokens a second of the server. Other seeds send other prompts, which no prefix cache knows."""
    num_requests = max(4, args.waves * concurrency)
    return load(server, concurrency, num_requests, args.input_len, args.output_len, seed, args.loadgen).out_tok_s


def static_batches(batches: list[int], input_len: int, output_len: int) -> list[float]:
    """Output tokens a second of transformers, for each batch size; runs in a process of its own."""
    import torch

    from app.models.reference import transformers_model

    model: Any = transformers_model(find_model("embedded"), torch.bfloat16, "sdpa")

    def generate(batch: int, num_tokens: int) -> float:
        prompts = torch.randint(*_TOKEN_IDS, (batch, input_len))
        began = time.perf_counter()
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        assert output.shape == (batch, input_len + num_tokens)
        return batch * num_tokens / (time.perf_counter() - began)

    generate(max(batches), _WARMUP_TOKENS)
    return [generate(batch, output_len) for batch in batches]


def served_batches(round_number: int, args: argparse.Namespace) -> list[float]:
    """Output tokens a second of a fresh server, for each concurrency."""
    with paceline_serve() as server:
        served(server, max(args.concurrency), 0, argparse.Namespace(**{**vars(args), "output_len": _WARMUP_TOKENS}))
        return [served(server, concurrency, round_number, args) for concurrency in args.concurrency]


def measure(args: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Tokens a second of both sides: {concurrency: {side: one value for each round}}.

    The sides take turns, and neither has a process while the other is measured.
    """
    rates: dict[int, dict[str, list[float]]] = {c: {"paceline": [], "transformers": []} for c in args.concurrency}
    for round_number in range(1, args.rounds + 1):
        paceline = served_batches(round_number, args)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            transformers = pool.apply(static_batches, (args.concurrency, args.input_len, args.output_len))
            pool.close()
            pool.join()  # waited for, so that its processor time counts as this script's
        for concurrency, ours, theirs in zip(args.concurrency, paceline, transformers, strict=True):
            rates[concurrency]["paceline"].append(ours)
            rates[concurrency]["transformers"].append(theirs)
            latest = f"paceline {ours:.1f} tok/s, transformers {theirs:.1f} tok/s"
            print(f"round {round_number}, concurrency {concurrency}: {latest}", flush=True)
    return rates


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=2, help="requests for each one in flight (at least 4 in all)")
    parser.add_argument("--loadgen", type=Path, help="an external load generator, instead of Paceline's own")
    args = parser.parse_args()
    rows = []
    rates = measure(args)
    for concurrency, sides in rates.items():
        paceline, transformers = (statistics.median(sides[side]) for side in ("paceline", "transformers"))
        rows.append((concurrency, paceline, transformers, paceline / transformers))
    print_table(("concurrency", "paceline tok/s", "transformers tok/s", "ratio"), rows)
    medians = [dict(zip(("concurrency", "paceline", "transformers", "ratio"), row, strict=True)) for row in rows]
    write_result(args, {"tokens_per_second": medians, "rounds": rates})


if __name__ == "__main__":
    main()
