"""Shared by all benchmarks: a server as a child process, the description of the machine, tables and result files."""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # `import app` works without an installation

from paceline_bench.client import Server  # noqa: E402
from paceline_bench.report import summarize  # noqa: E402
from paceline_bench.runner import Run  # noqa: E402
from paceline_bench.workload import Workload  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"

_READY_TIMEOUT = 300.0  # seconds; the first start converts the model
_STOP_TIMEOUT = 30.0
_LOG_TAIL = 4000  # bytes
_QUIET = 0.1  # cores


def _cpu_seconds() -> tuple[float, float]:
    """Processor time so far: of the whole machine, and of this process with its children that have ended."""
    machine, own = psutil.cpu_times()._asdict(), os.times()
    busy = sum(seconds for kind, seconds in machine.items() if kind not in ("idle", "iowait", "guest", "guest_nice"))
    return busy, own.user + own.system + own.children_user + own.children_system


_BEGAN = time.perf_counter(), *_cpu_seconds()


@dataclass(frozen=True)
class ServerProcess:
    """A `paceline serve` that is ready."""

    url: str
    process: subprocess.Popen[bytes]
    startup_s: float
    """From exec to the first 200 of /health/ready."""

    def model(self) -> str:
        """The name to send in requests."""
        return str(httpx.get(f"{self.url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]["id"])

    def metrics(self) -> str:
        """The text of /metrics."""
        return httpx.get(f"{self.url}/metrics", trust_env=False).raise_for_status().text

    def metric(self, name: str) -> float:
        """One without labels."""
        found = re.search(rf"^paceline_{name} (\S+)$", self.metrics(), re.MULTILINE)
        assert found, name
        return float(found[1])


@contextmanager
def paceline_serve(*flags: str) -> Iterator[ServerProcess]:
    """Start `paceline serve` on a free port, wait until it is ready, and stop it at the end.

    Raises RuntimeError with the end of its log if it does not get ready.
    """
    port = _free_port()
    with _serve([*_paceline(), "serve", "--port", str(port), *flags], port, "/health/ready") as server:
        yield server


@contextmanager
def llama_serve(binary: Path, model: Path, *flags: str) -> Iterator[ServerProcess]:
    """The same for llama.cpp's `llama-server`, with a GGUF file."""
    port = _free_port()
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *flags]
    with _serve(command, port, "/health") as server:
        yield server


@contextmanager
def _serve(command: list[str], port: int, ready: str) -> Iterator[ServerProcess]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server is stopped then, too
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be stopped with it
        )
        try:
            _wait_ready(process, url + ready, log)
            yield ServerProcess(url, process, time.perf_counter() - began)
        finally:
            _stop(process)


class Load(NamedTuple):
    """What clients saw."""

    out_tok_s: float
    """Output tokens a second."""
    ttft_ms: float
    """The median time to the first token."""


def load(
    server: ServerProcess,
    concurrency: int,
    num_requests: int,
    input_len: int,
    output_len: int,
    seed: int,
    loadgen: Path | None = None,
) -> Load:
    """Send prompts of random tokens, so many at a time. Other seeds send others, which no prefix cache knows.

    `loadgen`: an external load generator, instead of Paceline's own.
    """
    if loadgen:
        return _external_load(loadgen, server, concurrency, num_requests, input_len, output_len, seed)
    workload = Workload(
        concurrency=concurrency,
        num_requests=num_requests,
        model=server.model(),
        input_len=input_len,
        output_len=output_len,
        seed=seed,
    )
    run = Run(workload)

    async def execute() -> None:
        async with Server(server.url) as target:
            await run.execute(target)

    asyncio.run(execute())
    summary = summarize(run)
    if summary.failed or summary.short_outputs or not summary.ttft_ms:
        raise RuntimeError(f"{summary.failed} failed, {summary.short_outputs} short outputs: {summary.errors}")
    return Load(summary.out_tok_s, summary.ttft_ms.p50)


_LONG_PROMPT, _LONG_PROMPTS = 512, 5


def load_figures(server: ServerProcess, round_number: int, args: argparse.Namespace) -> dict[str, float]:
    """Output tokens a second by number of clients, and the processor's time for each, with its share of the prompts;
    and the first token of long prompts.

    `args`: concurrency, input_len, output_len and loadgen.
    """
    figures: dict[str, float] = {}
    for concurrency in args.concurrency:
        load(server, concurrency, concurrency, args.input_len, 4, 1000 + round_number, args.loadgen)  # to warm up
        asked = concurrency, max(4, 2 * concurrency), args.input_len, args.output_len
        before = _processor_seconds(server)
        figures[f"tok/s, {concurrency} clients"] = load(server, *asked, round_number, args.loadgen).out_tok_s
        spent = (_processor_seconds(server) - before) / (asked[1] * args.output_len)
        figures[f"processor ms a token, {concurrency} clients"] = spent * 1000
    long = load(server, 1, _LONG_PROMPTS, _LONG_PROMPT, 2, round_number, args.loadgen)
    return figures | {"first token of 512, ms": long.ttft_ms}


def _processor_seconds(server: ServerProcess) -> float:
    """Of a server's processes so far."""
    main = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def _external_load(
    loadgen: Path,
    server: ServerProcess,
    concurrency: int,
    num_requests: int,
    input_len: int,
    output_len: int,
    seed: int,
) -> Load:
    spec = {"name": "x", "n": num_requests, "concurrency": concurrency, "in": input_len, "out": output_len}
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, str(loadgen), "--base-url", server.url, "--model", server.model()]
        command += ["--workloads", "", "--custom", json.dumps(spec), "--seed", str(seed), "--out", out.name]
        command += ["--warmup", "0", "--workers", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(Path(out.name).read_text())["workloads"]["x"]
    if result["failed"] or result["short_outputs"]:
        raise RuntimeError(f"{result['failed']} failed, {result['short_outputs']} short outputs: {result['errors']}")
    return Load(result["out_tok_s"], result["ttft_ms"]["p50"])


def write_adapters(model: Path, folder: Path, count: int, rank: int) -> dict[str, Path]:
    """LoRA adapters of random numbers for all projections of a model like Llama; their folders by name.

    `model`: a folder with config.json.
    """
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    q_size, kv_size = heads * dim, config["num_key_value_heads"] * dim
    shapes = {
        f"self_attn.{name}_proj": (hidden, size) for name, size in zip("qkv", (q_size, kv_size, kv_size), strict=True)
    }
    shapes |= {"self_attn.o_proj": (q_size, hidden), "mlp.down_proj": (inner, hidden)}
    shapes |= {f"mlp.{name}_proj": (hidden, inner) for name in ("gate", "up")}
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    folders = {}
    for index in range(count):
        tensors = {}
        for layer in range(config["num_hidden_layers"]):
            for name, (inputs, outputs) in shapes.items():
                for kind, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                    key = f"base_model.model.model.layers.{layer}.{name}.lora_{kind}.weight"
                    tensors[key] = torch.randn(shape, dtype=torch.bfloat16) * 0.01
        own = folders[f"adapter{index}"] = folder / f"adapter{index}"
        own.mkdir()
        save_file(tensors, own / "adapter_model.safetensors")
        (own / "adapter_config.json").write_text(json.dumps(told))
    return folders


def forget_shapes() -> None:
    """Keep servers from holding on to compiled products: oneDNN has up to 1,024, by shape, some 100 MB in the end.

    For scripts that look for memory that is lost.
    """
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "1"


def _paceline() -> list[str]:
    """The installed command of this Python, or the checkout's."""
    installed = shutil.which("paceline", path=str(Path(sys.executable).parent))
    return [installed] if installed else [sys.executable, "-c", "from app.cli import main; main()"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.perf_counter() + _READY_TIMEOUT
    with httpx.Client(trust_env=False) as http:
        while time.perf_counter() < deadline and process.poll() is None:
            try:
                if http.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # does not listen yet
            time.sleep(0.01)
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL))
    raise RuntimeError(f"the server did not get ready (exit code {process.poll()}):\n{log.read().decode()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as an operator would; what is left of the process group after that is killed."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        print("the server did not stop on SIGTERM", file=sys.stderr)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_result(args: argparse.Namespace, figures: dict[str, Any], of: str = "") -> None:
    """Write figures with what is needed to judge them to benchmarks/results/<script>.json, or <script>_<of>.json."""
    name = Path(sys.argv[0]).stem
    others = _cores_of_others()
    if others > _QUIET:
        print(f"\nDO NOT TRUST THESE FIGURES: other processes used {others:.2f} cores meanwhile.")
    result = {
        "benchmark": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "cores_used_by_others": round(others, 2),
        "flags": {key: value.name if isinstance(value, Path) else value for key, value in vars(args).items()},
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{name}_{of}.json" if of else f"{name}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(REPOSITORY)}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, ready for README.md; floats are cut to what a reader needs."""

    def text(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    print()
    for line in (header, ["---"] * len(header), *([text(value) for value in row] for row in rows)):
        print(f"| {' | '.join(line)} |")


def _cores_of_others() -> float:
    """Cores that were busy since this script began with what neither it nor its ended children did.

    A static batch on all cores waits for its slowest thread: a busy neighbour can cost it ten times its speed, and a
    comparison then says nothing.
    """
    began, busy_before, own_before = _BEGAN
    busy, own = _cpu_seconds()
    return max(0.0, (busy - busy_before) - (own - own_before)) / (time.perf_counter() - began)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "app") else "")


def _machine() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
