"""Plots latency over load."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BenchError
from .report import Distribution, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require_matplotlib() -> None:
    """Raise BenchError if matplotlib is missing. To be called before an hour of measuring, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError(f"--plot needs matplotlib: {sys.executable} -m pip install matplotlib") from error


def write_plot(summaries: Sequence[Summary], title: str, path: Path) -> None:
    """Plot TTFT, ITL and throughput over the load, as a PNG or in the format of the file's ending."""
    from matplotlib.figure import Figure  # an optional dependency; without pyplot, no display is needed

    summaries = [s for s in summaries if s.ttft_ms]
    loads = [s.concurrency or s.rate or 0.0 for s in summaries]
    figure = Figure(figsize=(12, 4), layout="constrained")
    ttft, itl, throughput = figure.subplots(1, 3)
    _plot_times(ttft, "TTFT", loads, [s.ttft_ms for s in summaries])
    _plot_times(itl, "ITL", loads, [s.itl_ms for s in summaries])
    throughput.plot(loads, [s.out_tok_s for s in summaries], "o-")
    throughput.set_title("Throughput")
    throughput.set_ylabel("output tokens per second")
    for axes in (ttft, itl, throughput):
        axes.set_xlabel("requests per second" if summaries and summaries[0].rate else "requests in flight")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _plot_times(axes: "Axes", name: str, loads: Sequence[float], times: Sequence[Distribution | None]) -> None:
    nan = float("nan")
    axes.plot(loads, [t.p50 if t else nan for t in times], "o-", label="p50")
    axes.plot(loads, [t.p99 if t else nan for t in times], "o--", label="p99")
    axes.set_title(name)
    axes.set_ylabel("milliseconds")
    axes.legend()
