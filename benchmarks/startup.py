"""Time from exec of `paceline serve` to ready, with a model that was converted before, by phase; and memory at rest."""

import argparse
import os
import re
import statistics

import httpx
import psutil
from common import ServerProcess, paceline_serve, print_table, write_result

_PHASE = re.compile(r'^paceline_startup_seconds\{phase="([^"]+)"\} (\S+)$', re.MULTILINE)
_PROCESSES = {".engine.server": "engine", ".api.process": "API worker"}
"""By the module that each runs. The other one is the supervisor."""


def start() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one start: the phases that the server reports, the rest, and the total. Then MB of memory at rest.

    The server's own total begins only when its code runs; ours at exec. The rest is the interpreter, the front end's
    imports, and waiting.
    """
    with paceline_serve() as server:
        phases = {name: float(seconds) for name, seconds in _PHASE.findall(server.metrics()) if name != "total"}
        seconds = {**phases, "rest": server.startup_s - sum(phases.values()), "total": server.startup_s}
        return seconds, memory_at_rest(server)


def memory_at_rest(server: ServerProcess) -> dict[str, float]:
    """MB of physical memory once a request was served: of each process, and of files that are mapped, by library.

    The total counts memory that processes share once for each; its proportional part ("PSS") counts it once.
    """
    message = {"role": "user", "content": "Name the capital of France."}
    body = {"messages": [message], "max_tokens": 16}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False).raise_for_status()
    main = psutil.Process(server.process.pid)
    of_process, files = dict.fromkeys((*_PROCESSES.values(), "supervisor"), 0.0), dict.fromkeys(("torch", "LLVM"), 0.0)
    total = proportional = 0.0
    for process in [main, *main.children(recursive=True)]:
        used = process.memory_full_info()
        command = process.cmdline()
        runs = (name for module, name in _PROCESSES.items() if any(word.endswith(module) for word in command))
        name = next(runs, "supervisor")
        of_process[name] += used.rss / 1e6
        total, proportional = total + used.rss / 1e6, proportional + used.pss / 1e6
        for mapping in process.memory_maps():
            for library, path in (("torch", "/torch/lib/"), ("LLVM", "llvmlite")):
                files[library] += mapping.rss / 1e6 if path in mapping.path else 0.0
    of_files = {f"of these mapped files of {library}": size for library, size in files.items()}
    return {**of_process, "total": total, "total, PSS": proportional, **of_files}


def main() -> None:
    """Measure, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a second start finds bytecode, unless somebody forbids it
    start()  # converts the model if nobody did, and brings the files into the page cache
    runs = [start() for _ in range(args.runs)]
    result = {}
    for index, (what, unit) in enumerate((("phase", "s"), ("memory", "mb"))):
        figures = [run[index] for run in runs]
        medians = {name: statistics.median(run[name] for run in figures) for name in figures[0]}
        print_table(
            (what, f"median {unit}", *(f"run {i}" for i in range(1, args.runs + 1))),
            [(name, medians[name], *(run[name] for run in figures)) for name in medians],
        )
        result |= {f"median_{unit}": medians, f"runs_{unit}": figures}
    write_result(args, result)


if __name__ == "__main__":
    main()
