"""Time from exec of `paceline serve` to ready, with a model that was converted before, and its phases."""

import argparse
import re
import statistics

from common import paceline_serve, print_table, write_result

_PHASE = re.compile(r'^paceline_startup_seconds\{phase="([^"]+)"\} (\S+)$', re.MULTILINE)


def start() -> dict[str, float]:
    """Seconds of one start: the phases that the server reports, the rest, and the total.

    The server's own total begins only when its code runs; ours at exec. The rest is the interpreter, the front end's
    imports, and waiting.
    """
    with paceline_serve() as server:
        phases = {name: float(seconds) for name, seconds in _PHASE.findall(server.metrics()) if name != "total"}
        return {**phases, "rest": server.startup_s - sum(phases.values()), "total": server.startup_s}


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    start()  # converts the model if nobody did, and brings the files into the page cache
    runs = [start() for _ in range(args.runs)]
    medians = {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
    print_table(
        ("phase", "median s", *(f"run {i}" for i in range(1, args.runs + 1))),
        [(phase, medians[phase], *(run[phase] for run in runs)) for phase in medians],
    )
    write_result(args, {"median_s": medians, "runs": runs})


if __name__ == "__main__":
    main()
