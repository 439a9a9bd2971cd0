"""`paceline doctor`: what this machine is good for, measured, in plain words."""

import json
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .core.machine import free_memory, usable_cpus
from .kernels.cpu.vector_code import lanes_of_processor
from .layers.methods.onednn import has_bfloat16
from .settings import cache_folder
from .version import __version__

_BITS = (16, 8, 4)
_STORED_BITS = {16: 16.0, 8: 8.5, 4: 4.5}
"""A weight with its part of scales, one of 16 bits for 32 weights."""
_SIZES = (0.1, 0.5, 1, 3, 8, 14, 32, 70, 120)
"""Parameters, in billions."""
_MOST_OF_MEMORY = 0.8
"""Share of the free memory that weights may take, beside K and V and the largest step."""
_MEASURED_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""More than the caches."""
_ROUNDS = 7
_INSTRUCTIONS = {16: "AVX512-VNNI", 8: "AVX2"}
"""By the outputs of a panel (`lanes_of_processor`)."""
_SLOW = 5
"""Tokens a second below which nobody likes to wait."""


@dataclass(frozen=True)
class Device:
    """A processor with its memory."""

    kind: str
    """cpu or cuda."""
    name: str
    memory: int
    """Bytes that are free."""
    bandwidth: float
    """Bytes that are read from the memory in a second, measured."""
    instructions: list[str]
    """Of a CPU: what speeds models up. Of a GPU: its compute capability."""


@dataclass(frozen=True)
class Fit:
    """How large models may be on a device."""

    device: str
    bits: int
    """Of a weight."""
    largest: float | None
    """Billions of parameters, of common sizes; None if not even the smallest fits."""
    tokens_per_second: float | None
    """What one request gets of that model at most: each token reads all weights once, of experts a part."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    system: str
    cores: int
    disk: int
    """Free bytes in the cache folder, where downloads and converted models go."""
    versions: dict[str, str]
    devices: list[Device]
    fits: list[Fit]
    advice: list[str]


def examine() -> Report:
    """Look at the machine, and measure it. Takes some seconds."""
    torch.set_num_threads(usable_cpus())
    devices = [_cpu(), *(_gpu(index) for index in range(torch.cuda.device_count()))]
    fits = [_fit(device, bits) for device in devices for bits in _BITS]
    return Report(
        system=f"{platform.system()} {platform.machine()}",
        cores=usable_cpus(),
        disk=shutil.disk_usage(_existing(cache_folder())).free,
        versions={"paceline": __version__, "python": platform.python_version(), "torch": torch.__version__},
        devices=devices,
        fits=fits,
        advice=_advice(devices, fits),
    )


def _cpu() -> Device:
    free = free_memory()
    instructions = [_INSTRUCTIONS[lanes] for lanes in lanes_of_processor()]
    instructions += ["bfloat16"] if has_bfloat16() else []
    return Device("cpu", _cpu_name(), free, _bandwidth("cpu", free), instructions)


def _cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(index: int) -> Device:
    name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    where = f"cuda:{index}"
    free = torch.cuda.mem_get_info(index)[0]
    return Device(where, name, free, _bandwidth(where, free), [f"compute capability {major}.{minor}"])


def _bandwidth(device: str, free: int) -> float:
    """Bytes that a sum reads in a second: the best of some rounds, since others may use the memory, too.

    `free`: bytes of the device's memory.
    """
    size = min(_MEASURED_BYTES[device.partition(":")[0]], free // 4)
    values = torch.zeros(size // 4, device=device)
    best = 0.0
    for _ in range(_ROUNDS):
        _wait(device)
        began_at = time.perf_counter()
        values.sum()
        _wait(device)
        best = max(best, values.nbytes / (time.perf_counter() - began_at))
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _fit(device: Device, bits: int) -> Fit:
    bytes_of_billion = 1e9 * _STORED_BITS[bits] / 8
    fitting = [size for size in _SIZES if size * bytes_of_billion <= _MOST_OF_MEMORY * device.memory]
    if not fitting:
        return Fit(device.kind, bits, None, None)
    return Fit(device.kind, bits, fitting[-1], device.bandwidth / (fitting[-1] * bytes_of_billion))


def _advice(devices: list[Device], fits: list[Fit]) -> list[str]:
    cpu, *gpus = devices
    said = []
    if gpus:
        said.append("Models run on the GPU unless you give --device cpu.")
    elif shutil.which("nvidia-smi"):
        said.append("There is an NVIDIA driver, but this torch does not see a GPU: install a torch with CUDA.")
    if not gpus:
        said.append(_advice_on_cpu(cpu))
    first = gpus[0] if gpus else cpu
    quick = [size for size in _SIZES if first.bandwidth / (size * 1e9 * _STORED_BITS[4] / 8) >= _SLOW]
    fitting = max((fit.largest or 0 for fit in fits if fit.device == first.kind), default=0)
    if not fitting:
        return [*said, "There is no memory for any model now."]
    best = min(max(quick, default=_SIZES[0]), fitting)
    said.append(f"Up to {_billions(best)} parameters in 4 bits, one request gets {_SLOW} tokens a second or more.")
    return said


def _advice_on_cpu(cpu: Device) -> str:
    if "AVX512-VNNI" in cpu.instructions:
        return "Quantized models are fastest here (AVX512-VNNI): GGUF files, or --quantization int8 or int4."
    if "AVX2" in cpu.instructions:
        return "Quantized models are faster here than plain ones (AVX2): GGUF files, or --quantization int8 or int4."
    return "This CPU has neither AVX512-VNNI nor AVX2: weights are multiplied as plain numbers, which is slow."


def told(report: Report) -> str:
    """The report for people."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [f"{versions} on {report.system}"]
    for device in report.devices:
        cores = f"{report.cores} cores, " if device.kind == "cpu" else ""
        with_ = f" ({', '.join(device.instructions)})" if device.instructions else ""
        lines.append(f"{device.kind:7} {device.name}, {cores}{_gib(device.memory)} free, read at "
                     f"{device.bandwidth / 1e9:.0f} GB/s{with_}")  # fmt: skip
    lines.append("        (free and measured just now, beside whatever else runs)")
    lines += [f"disk    {_gib(report.disk)} free in {cache_folder()}", "", "What fits, with room for some requests:"]
    lines += [f"  {fit.device:7} {fit.bits:2} bits  {_told_fit(fit)}" for fit in report.fits]
    return "\n".join([*lines, "", *report.advice])


def _told_fit(fit: Fit) -> str:
    if fit.largest is None or fit.tokens_per_second is None:
        return "nothing"
    speed = f"{fit.tokens_per_second:.{0 if fit.tokens_per_second >= 10 else 1}f} tokens/s"
    return f"up to {_billions(fit.largest)} parameters; of that size, one request gets at most {speed}"


def _billions(size: float) -> str:
    return f"{size:g} billion"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _existing(folder.parent)


def doctor(as_json: bool) -> None:
    """Print what was found."""
    report = examine()
    json.dump(asdict(report), sys.stdout, indent=2) if as_json else sys.stdout.write(told(report))
    print()
