"""Paceline and llama.cpp's server with the same GGUF file, through HTTP: output tokens a second, first token, memory.

Where other programs use the machine, the processor's time for a token, with one thread each, still says something.
Within each round one side follows the other, in processes of its own that have ended before the other's turn.
llama.cpp's has a slot for each client, all cores, and flash attention, and its KV cache has room for what is asked.
"""

import argparse
import os
import statistics
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
from common import ServerProcess, llama_serve, load_figures, paceline_serve, print_table, write_result


def serve(side: str, args: argparse.Namespace) -> AbstractContextManager[ServerProcess]:
    """A server with its best flags."""
    if side == "paceline":
        threads = ("--cpu-threads", str(args.threads))
        return paceline_serve("--model", str(args.model), "--no-prefix-caching", *threads, *args.flags)
    most = max(args.concurrency)
    context = most * 1024  # it gives each slot the same part
    return llama_serve(
        args.llama,
        args.model,
        "-t",
        str(args.threads),
        "-np",
        str(most),
        "-c",
        str(context),
        "-fa",
        "on",
        "--no-webui",
    )


def measure(side: str, round_number: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of a fresh server."""
    figures: dict[str, float] = {}
    with serve(side, args) as server:
        figures["start, s"] = server.startup_s
        figures |= load_figures(server, round_number, args)
        main = psutil.Process(server.process.pid)
        largest = max([main, *main.children(recursive=True)], key=lambda process: process.memory_info().rss)
        figures["memory of the model's process, MB"] = largest.memory_info().rss / 1e6
    print(
        f"round {round_number}, {side}: " + "; ".join(f"{name} {value:.1f}" for name, value in figures.items()),
        flush=True,
    )
    return figures


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", type=Path, required=True, help="llama.cpp's llama-server")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loadgen", type=Path, help="an external load generator, instead of Paceline's own")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags for Paceline, without their dashes: a=b")
    args = parser.parse_args()
    args.flags = [f"--{flag}" for flag in args.flags]
    rounds: dict[str, list[dict[str, float]]] = {"paceline": [], "llama.cpp": []}
    for round_number in range(1, args.rounds + 1):
        for side, of_side in rounds.items():
            of_side.append(measure(side, round_number, args))
    rows = []
    for name in rounds["paceline"][0]:
        ours, theirs = (statistics.median(one[name] for one in of_side) for of_side in rounds.values())
        rows.append((name, ours, theirs, ours / theirs))
    print_table(("", "paceline", "llama.cpp", "ratio"), rows)
    write_result(args, {"rounds": rounds}, args.model.stem)


if __name__ == "__main__":
    main()
