"""Building a worker from settings."""

import time
from dataclasses import dataclass
from pathlib import Path

from app.attention.backends.torch_paged import TorchPagedBackend
from app.core.step import NewRequest, SchedulerOutput
from app.core.sampling import SamplingParams
from app.models.loader import ModelFolder, load_model
from app.settings import Settings
from app.worker.kv_storage import bind_kv_cache, bytes_per_block
from app.worker.model_runner import ModelRunner
from app.worker.resolve import Resolved, resolve, resolve_num_blocks


@dataclass(frozen=True)
class BuiltWorker:
    """A worker that is ready to run, and what the engine has to know of it."""

    runner: ModelRunner
    resolved: Resolved
    architecture: str
    model_impl: str
    vocab_size: int
    num_blocks: int
    startup_seconds: dict[str, float]


def build_worker(settings: Settings, path: Path) -> BuiltWorker:
    """Load the model in a folder and allocate its KV blocks. Raises StartupError."""
    clock = _PhaseClock()
    folder = ModelFolder.open(path)
    resolved = resolve(settings, folder)
    clock.lap("resolve")
    loaded = load_model(folder, settings.model_impl, resolved.dtype, resolved.device, resolved.max_model_len)
    clock.lap("load_weights")
    block_bytes = bytes_per_block(loaded.attention_layers, settings.block_size, resolved.dtype)
    num_blocks = resolve_num_blocks(settings, resolved, block_bytes)
    backend = TorchPagedBackend()
    bind_kv_cache(loaded.attention_layers, backend, num_blocks, settings.block_size, resolved.dtype, resolved.device)
    clock.lap("allocate_kv_cache")
    runner = ModelRunner(
        loaded,
        backend,
        resolved.device,
        max_num_seqs=resolved.max_num_seqs,
        max_model_len=resolved.max_model_len,
        block_size=settings.block_size,
    )
    _warm_up(runner)
    clock.lap("warm_up")
    return BuiltWorker(runner, resolved, folder.architecture, loaded.impl, loaded.vocab_size, num_blocks, clock.seconds)


def _warm_up(runner: ModelRunner) -> None:
    """Run a prefill and a decode, so that no request pays for first-time work. Block 0 is overwritten later."""
    request = NewRequest(
        row=0,
        token_ids=[0, 0],
        num_prompt_tokens=2,
        num_computed_tokens=0,
        block_ids=[0],
        num_prompt_logprobs=0,
        sampling=SamplingParams(max_tokens=2, seed=0, top_k=2),
    )
    runner.submit(SchedulerOutput([request], [], [0], ["warm-up"], [2])).result()
    runner.submit(SchedulerOutput([], [(0, [1])], [0], ["warm-up"], [1])).result()


class _PhaseClock:
    """Durations of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now
