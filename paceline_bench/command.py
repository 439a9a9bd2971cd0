"""`paceline bench`: the command line of the load test."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .errors import BenchError

if TYPE_CHECKING:
    from .sweep import SweepResult
    from .workload import Workload

_DEFAULT_CONCURRENCY = "8"
_DEFAULT_NUM_REQUESTS = 64
_MAX_LOAD = 1e6
_EXIT_FAILED, _EXIT_CANNOT, _EXIT_INTERRUPTED = 1, 2, 130

_Number = TypeVar("_Number", int, float)


class _Endpoint(StrEnum):
    COMPLETIONS = "completions"
    CHAT = "chat"


def bench(
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.", show_default=False)],
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Requests in flight (closed loop); a list such as 1,8,32 is measured one after the other. "
            f"{_DEFAULT_CONCURRENCY} if no --rate is given.",
            rich_help_panel="Load",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Arrivals per second, at random (open loop, Poisson); a list such as 2,4,8 is measured one after "
            "the other.",
            rich_help_panel="Load",
        ),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Requests of each load. {_DEFAULT_NUM_REQUESTS} without --duration.", rich_help_panel="Load"
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0, help="Seconds in which each load starts requests.", rich_help_panel="Load")
    ] = None,
    input_len: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt (chat: words).", rich_help_panel="Requests")
    ] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer.", rich_help_panel="Requests")] = 128,
    endpoint: Annotated[
        _Endpoint,
        typer.Option(help="completions sends random token ids, chat sends text.", rich_help_panel="Requests"),
    ] = _Endpoint.COMPLETIONS,
    model: Annotated[
        str | None,
        typer.Option(help="The model to use; by default the first that the server lists.", rich_help_panel="Requests"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of prompts and arrivals. The same seed sends the same prompts, which a prefix cache remembers.",
            rich_help_panel="Requests",
        ),
    ] = 0,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as bearer token.", rich_help_panel="Requests")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds of silence after which a request failed.", rich_help_panel="Requests")
    ] = 600.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.", rich_help_panel="Output")
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw latency and throughput over the load. Needs matplotlib.",
            rich_help_panel="Output",
        ),
    ] = None,
) -> None:
    """Measure an OpenAI-compatible server under load: throughput, TTFT, TPOT, ITL and end-to-end latency.

    Ctrl-C reports what was measured so far. Exit code: 0; 1 if a request failed; 2 if nothing can be measured; 130.
    """
    # Other modules are imported here, because the command line imports this module for every command.
    from rich.console import Console

    from .plot import require_matplotlib
    from .sweep import sweep
    from .workload import Workload

    if num_requests is None and duration is None:
        num_requests = _DEFAULT_NUM_REQUESTS
    workloads = [
        Workload(
            concurrency=in_flight,
            rate=arrivals,
            num_requests=num_requests,
            duration=duration,
            model=model,
            endpoint=endpoint.value,
            input_len=input_len,
            output_len=output_len,
            seed=seed,
        )
        for in_flight, arrivals in _loads(concurrency, rate)
    ]
    try:
        for file in filter(None, (json_file, plot_file)):
            _require_folder(file)
        if plot_file:
            require_matplotlib()
        result = sweep(url, workloads, Console(stderr=True), api_key, timeout)
    except BenchError as error:
        typer.echo(f"paceline bench: {error}", err=True)
        raise typer.Exit(_EXIT_CANNOT) from None
    _write(url, workloads, result, json_file, plot_file)
    if result.interrupted:
        raise typer.Exit(_EXIT_INTERRUPTED)
    if any(summary.failed for summary in result.summaries):
        raise typer.Exit(_EXIT_FAILED)


def _loads(concurrency: str | None, rate: str | None) -> "list[tuple[int | None, float | None]]":
    """The points of the sweep, as (concurrency, rate), one of which is None."""
    if rate is None:
        return [(value, None) for value in _numbers(concurrency or _DEFAULT_CONCURRENCY, int, "--concurrency")]
    if concurrency is not None:
        raise typer.BadParameter("give --concurrency or --rate, not both")
    return [(None, value) for value in _numbers(rate, float, "--rate")]


def _numbers(text: str, kind: type[_Number], option: str) -> list[_Number]:
    """The positive numbers of a comma-separated list."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < _MAX_LOAD for number in numbers):
        raise typer.BadParameter(f"{text!r} is no list of positive numbers such as 1,8,32", param_hint=option)
    return numbers


def _require_folder(file: Path) -> None:
    """Raise BenchError now, not after measuring."""
    if not file.parent.is_dir():
        raise BenchError(f"no such folder: {file.parent}")


def _write(
    url: str, workloads: "list[Workload]", result: "SweepResult", json_file: Path | None, plot_file: Path | None
) -> None:
    """Print the tables and write the files."""
    from rich.console import Console

    from .plot import write_plot
    from .report import print_report, to_json

    print_report(result.summaries, Console())
    if json_file:
        first = workloads[0]
        content = {
            "paceline": version("paceline"),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "url": url,
            "model": result.model,
            "endpoint": first.endpoint,
            "input_len": first.input_len,
            "output_len": first.output_len,
            "seed": first.seed,
            "interrupted": result.interrupted,
            "loads": to_json(result.summaries),
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if plot_file:
        write_plot(result.summaries, f"{result.model} at {url}", plot_file)
