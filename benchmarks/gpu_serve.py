"""The whole service on a GPU, measured by an external load generator, with random weights of a real shape, no prefix
cache, greedy.

Starts `paceline serve`, runs the load generator's workloads one after the other, prints a table, and keeps the
results of the load generator. Arguments behind `--` go to `paceline serve`.

With `--adapters N`, workload C is shared among N load generators at once: in turn, none and each has an adapter of its
own. The figure is the sum of their output tokens a second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import paceline_serve, print_table, write_adapters, write_result


def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """The load generator's figures, workload by workload."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [sys.executable, str(args.loadgen), "--base-url", url, "--model", "m", "--label", args.model.name]
        command += ["--workloads", args.workloads, "--rate", str(args.rate), "--scale", str(args.scale)]
        command += ["--workers", str(args.workers), "--extra-body", args.extra_body, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        workloads: dict[str, Any] = json.loads(out.read_text())["workloads"]
        return workloads


_C = {"name": "C", "n": 128, "concurrency": 32, "in": 512, "out": 256}
"""The load generator's workload."""


def measure_adapters(url: str, names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Output tokens a second of workload C, in each round: of the model alone, and of adapters of these names."""
    rates: dict[str, list[float]] = {"none": [], "adapters": []}
    spec = _C | {"n": int(_C["n"] * args.scale) // len(names), "concurrency": _C["concurrency"] // len(names)}
    for _ in range(args.rounds):
        for kind, served in (("none", ["m"] * len(names)), ("adapters", names)):
            with tempfile.TemporaryDirectory() as folder:
                outs = [Path(folder, f"{index}.json") for index in range(len(names))]
                command = [sys.executable, str(args.loadgen), "--base-url", url, "--workloads", "", "--label", kind]
                command += ["--custom", json.dumps(spec), "--workers", str(max(1, args.workers // len(names)))]
                running = [
                    subprocess.Popen([*command, "--model", name, "--out", str(out)], stdout=subprocess.DEVNULL)
                    for name, out in zip(served, outs, strict=True)
                ]
                assert not any(process.wait() for process in running)
                workloads = [json.loads(out.read_text())["workloads"]["C"] for out in outs]
            assert all(w["ok"] == w["requests"] for w in workloads)
            rates[kind].append(round(sum(w["out_tok_s"] for w in workloads), 1))
            print(kind, rates[kind][-1], [w["tpot_ms"]["p50"] for w in workloads], flush=True)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json and a tokenizer")
    parser.add_argument("--loadgen", type=Path, required=True, help="the load generator, a Python script")
    parser.add_argument("--workloads", default="A,B,C,D,A")
    parser.add_argument("--rate", type=float, default=16.0, help="arrivals a second of workload D")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--workers", type=int, default=6, help="processes of the load generator")
    parser.add_argument("--api-workers", type=int, default=4)
    parser.add_argument("--extra-body", default="{}", help="JSON, such as sampling parameters")
    parser.add_argument("--adapters", type=int, default=0, help="random LoRA adapters of all projections")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--rounds", type=int, default=2, help="of workload C, with adapters")
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    args = parser.parse_args()
    flags = ["--model", str(args.model.absolute()), "--served-model-name", "m", "--load-format", "dummy"]
    flags += ["--no-prefix-caching", "--max-model-len", "8192", "--api-workers", str(args.api_workers), *args.serve]
    if args.adapters:
        with tempfile.TemporaryDirectory() as folder:
            adapters = write_adapters(args.model, Path(folder), args.adapters, args.rank)
            flags += [part for name, path in adapters.items() for part in ("--lora", f"{name}={path}")]
            with paceline_serve(*flags) as server:
                rates = measure_adapters(server.url, list(adapters), args)
        share = max(rates["adapters"]) / max(rates["none"])
        print_table(("workload C", "out tok/s"), [(kind, max(rate)) for kind, rate in rates.items()])
        print(f"\n{share:.3f} times with {args.adapters} adapters; ready after {server.startup_s:.1f} s")
        figures = {"startup_s": server.startup_s, "out_tok_s": rates, "share": share}
        write_result(args, figures, f"{args.model.name}_adapters")
        return
    with paceline_serve(*flags) as server:
        workloads = measure(server.url, args)
    rows = [
        (
            name,
            f"{w['ok']}/{w['requests']}",
            w["out_tok_s"],
            *(w[kind][share] for kind in ("ttft_ms", "tpot_ms") for share in ("p50", "p99")),
        )
        for name, w in workloads.items()
    ]
    print_table(("workload", "ok", "out tok/s", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms"), rows)
    print(f"\nready after {server.startup_s:.1f} s")
    write_result(args, {"startup_s": server.startup_s, "workloads": workloads}, args.model.name)


if __name__ == "__main__":
    main()
