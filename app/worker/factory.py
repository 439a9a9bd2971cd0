"""Building a worker from settings."""

import time
from pathlib import Path

import torch

from app.attention.backends.base import AttentionBackend
from app.attention.backends.torch_paged import TorchPagedBackend
from app.core.sampling import SamplingParams
from app.core.step import BuiltWorker, NewRequest, SchedulerOutput
from app.kernels.ops import CPU_DTYPES
from app.models.loader import ModelFolder, load_model
from app.settings import Settings
from app.worker.kv_storage import bind_kv_cache, bytes_per_block
from app.worker.model_runner import ModelRunner
from app.worker.resolve import resolve, resolve_blocks


def build_worker(settings: Settings, path: Path) -> BuiltWorker:
    """Load the model in a folder and allocate its KV blocks. Raises StartupError."""
    clock = _PhaseClock()
    folder = ModelFolder.open(path)
    resolved = resolve(settings, folder)
    device, dtype = resolved.device, resolved.dtype
    clock.lap("resolve")
    loaded = load_model(folder, settings.model_impl, dtype, device, resolved.limits.max_model_len)
    clock.lap("load_weights")
    layers = loaded.attention_layers
    limits = resolve_blocks(settings, resolved, bytes_per_block(layers, settings.block_size, dtype))
    backend = _choose_backend(device, dtype)
    bind_kv_cache(layers, backend, limits.num_blocks, settings.block_size, dtype, device)
    clock.lap("allocate_kv_cache")
    runner = ModelRunner(
        loaded,
        backend,
        device,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=settings.block_size,
    )
    _warm_up(runner, min(2, limits.max_model_len - 1))
    clock.lap("warm_up")
    return BuiltWorker(
        worker=runner,
        limits=limits,
        architecture=folder.architecture,
        model_impl=loaded.impl,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=loaded.vocab_size,
        startup_seconds=clock.seconds,
    )


def _choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    if device.type == "cpu" and dtype in CPU_DTYPES:
        from app.attention.backends.cpu_paged import CpuPagedBackend  # Numba is for the CPU only

        return CpuPagedBackend()
    return TorchPagedBackend()


def _warm_up(runner: ModelRunner, prompt_len: int) -> None:
    """Run a prefill and a decode, so that no request pays for first-time work. Block 0 is overwritten later."""
    request = NewRequest(
        row=0,
        token_ids=[0] * prompt_len,
        num_prompt_tokens=prompt_len,
        num_computed_tokens=0,
        block_ids=[0],
        num_prompt_logprobs=0,
        sampling=SamplingParams(max_tokens=2, seed=0, top_k=2),
    )
    runner.submit(SchedulerOutput([request], [], [0], ["warm-up"], [prompt_len])).result()
    runner.submit(SchedulerOutput([], [], [0], ["warm-up"], [1])).result()


class _PhaseClock:
    """Durations of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now
