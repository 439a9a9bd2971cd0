"""Building a worker from settings."""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from app.attention.backends.torch_paged import TorchPagedBackend
from app.checkpoint.folder import ModelFolder
from app.core.sampling import SamplingParams
from app.core.step import BuiltWorker, Limits, NewRequest, SchedulerOutput, Worker
from app.errors import StartupError
from app.grammar.masks import GrammarMasks
from app.kernels.ops import CPU_DTYPES, HAS_TRITON, keep_compiled
from app.models.loader import LoadedModel, load_model
from app.settings import Settings, cache_folder
from app.worker.kv_storage import bind_kv_cache, bytes_per_block
from app.worker.model_runner import ModelRunner
from app.worker.resolve import Resolved, resolve, resolve_blocks

log = logging.getLogger(__name__)


def build_worker(settings: Settings, path: Path) -> BuiltWorker:
    """Load the model in a folder and allocate its KV blocks. Raises StartupError."""
    clock = _PhaseClock()
    folder = ModelFolder.open(path)
    resolved = resolve(settings, folder)
    keep_compiled(cache_folder(), resolved.device)
    clock.lap("resolve")
    try:
        loaded = load_model(folder, settings, resolved.dtype, resolved.device, resolved.limits.max_model_len)
        clock.lap("load_weights")
        chosen = _choose_backend(settings, resolved)
        grammars = GrammarMasks(path, loaded.vocab_size)
        if chosen == "triton":
            worker, limits = _build_gpu_runner(settings, resolved, loaded, grammars, clock)
        else:
            worker, limits = _build_runner(settings, resolved, loaded, grammars, clock, _backend(chosen))
    except torch.cuda.OutOfMemoryError as error:
        raise StartupError(
            f"the GPU's memory does not suffice: {error}. Lower gpu_memory_utilization if other programs use this GPU, "
            "else max_num_batched_tokens or max_num_seqs, or take a smaller model"
        ) from error
    return BuiltWorker(
        worker=worker,
        limits=limits,
        architecture=folder.architecture,
        model_impl=loaded.impl,
        device=str(resolved.device),
        dtype=str(resolved.dtype).removeprefix("torch."),
        vocab_size=loaded.vocab_size,
        startup_seconds=clock.seconds,
    )


def _choose_backend(settings: Settings, resolved: Resolved) -> str:
    """Whose kernels attend; StartupError if they cannot on this device."""
    on_gpu, asked = resolved.device.type == "cuda", settings.attention_backend
    # Triton's interpreter runs its kernels anywhere, if slowly: for tests.
    fits = {
        "triton": HAS_TRITON and (on_gpu or bool(os.environ.get("TRITON_INTERPRET"))),
        "cpu": not on_gpu and resolved.dtype in CPU_DTYPES,
        "torch": True,
    }
    if asked != "auto":
        if not fits[asked]:
            raise StartupError(f"attention_backend: {asked} does not run on {resolved.device} with {resolved.dtype}")
        return asked
    chosen = ("triton" if HAS_TRITON else "torch") if on_gpu else "cpu" if fits["cpu"] else "torch"
    reasons = {
        "triton": "kernels that CUDA graphs can hold",
        "cpu": "kernels that read KV blocks in place",
        "torch": "no other kernels for this device and dtype",
    }
    log.info("attention backend %s: %s", chosen, reasons[chosen])
    return chosen


def _backend(chosen: str) -> TorchPagedBackend:
    if chosen == "cpu":
        from app.attention.backends.cpu_paged import CpuPagedBackend  # Numba is for the CPU only

        return CpuPagedBackend()
    return TorchPagedBackend()


def _build_runner(
    settings: Settings,
    resolved: Resolved,
    loaded: LoadedModel,
    grammars: GrammarMasks,
    clock: "_PhaseClock",
    backend: TorchPagedBackend,
) -> tuple[Worker, Limits]:
    """A worker that runs steps as they come."""
    device, dtype, layers = resolved.device, resolved.dtype, loaded.attention_layers
    limits = resolve_blocks(settings, resolved, bytes_per_block(layers, settings.block_size, dtype))
    bind_kv_cache(layers, backend, limits.num_blocks, settings.block_size, dtype, device)
    clock.lap("allocate_kv_cache")
    runner = ModelRunner(
        loaded,
        backend,
        device,
        grammars,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=settings.block_size,
    )
    _warm_up(runner, min(2, limits.max_model_len - 1))
    clock.lap("warm_up")
    return runner, limits


def _build_gpu_runner(
    settings: Settings, resolved: Resolved, loaded: LoadedModel, grammars: GrammarMasks, clock: "_PhaseClock"
) -> tuple[Worker, Limits]:
    """A worker that replays recorded steps."""
    from app.attention.backends.triton_paged import TritonPagedBackend
    from app.worker.gpu_runner import GpuRunner

    device, dtype, layers = resolved.device, resolved.dtype, loaded.attention_layers
    backend = TritonPagedBackend([layer.config for layer in layers])
    runner = GpuRunner(
        loaded,
        backend,
        device,
        grammars,
        max_num_seqs=resolved.limits.max_num_seqs,
        max_num_batched_tokens=resolved.limits.max_num_batched_tokens,
        max_model_len=resolved.limits.max_model_len,
        block_size=settings.block_size,
    )
    activations = 0
    if device.type == "cuda":
        bind_kv_cache(layers, backend, 1, settings.block_size, dtype, device)  # to measure without
        runner.compile()
        clock.lap("compile_kernels")
        activations = runner.measure_activations()
        clock.lap("measure_memory")
    block_bytes = bytes_per_block(layers, settings.block_size, dtype)
    limits = resolve_blocks(settings, resolved, block_bytes, activations)
    bind_kv_cache(layers, backend, limits.num_blocks, settings.block_size, dtype, device)
    clock.lap("allocate_kv_cache")
    runner.prepare()
    clock.lap("record_graphs")
    return runner, replace(limits, step_sizes=tuple(runner.token_sizes))


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
