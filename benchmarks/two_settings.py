"""Paceline twice, with different settings, through HTTP: output tokens a second, and the first token.

Within each round one side follows the other, in processes of its own that have ended before the other's turn. An
example: `--first quantization=none --second quantization=int8`.
"""

import argparse
import statistics
from pathlib import Path

from common import load_figures, paceline_serve, print_table, write_result


def measure(flags: list[str], round_number: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of a fresh server."""
    model = ["--model", args.model] if args.model else []
    with paceline_serve("--no-prefix-caching", *model, *(f"--{flag}" for flag in flags)) as server:
        figures = load_figures(server, round_number, args)
    print(f"round {round_number}, {flags}: " + "; ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    return figures


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="as for the service; default: the embedded one")
    parser.add_argument("--first", nargs="*", default=[], help="settings, such as quantization=none")
    parser.add_argument("--second", nargs="*", default=[], help="settings of the other side")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="", help="of the comparison, for the result's file")
    parser.add_argument("--loadgen", type=Path, help="an external load generator, instead of Paceline's own")
    args = parser.parse_args()
    rounds: tuple[list[dict[str, float]], list[dict[str, float]]] = [], []
    for round_number in range(1, args.rounds + 1):
        for flags, of_side in zip((args.first, args.second), rounds, strict=True):
            of_side.append(measure(flags, round_number, args))
    rows = []
    for name in rounds[0][0]:
        first, second = (statistics.median(one[name] for one in of_side) for of_side in rounds)
        rows.append((name, first, second, second / first))
    print_table(("", " ".join(args.first), " ".join(args.second), "ratio"), rows)
    write_result(args, {"rounds": rounds}, args.name)


if __name__ == "__main__":
    main()
