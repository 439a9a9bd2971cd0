"""Putting an engine together: the one place that knows both scheduler and worker."""

import time
from pathlib import Path

from app.checkpoint.encoders import EncoderConfig
from app.core.step import BuiltEncoder, BuiltWorker
from app.core.wire import EngineReady, Task
from app.engine.block_pool import BlockPool
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.encoder_core import EncoderCore
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone
from app.fairness.fair_shares import FairShares
from app.settings import Settings


def build_engine(settings: Settings, model_folder: Path) -> tuple[EngineCore, EngineReady]:
    """Load the model in a folder, which generates, and put an engine around it. Raises StartupError."""
    started = time.monotonic()
    # Imported here because torch takes a second: it is a phase of its own, and the echo worker does without.
    if settings.worker == "echo":
        from app.worker.echo import build_echo_worker as build
    else:
        from app.worker.factory import build_worker as build
    imported = time.monotonic()
    built = build(settings, model_folder)
    limits = built.limits
    pacer = ChunkPacer(limits.max_itl, settings.block_size, limits.max_num_batched_tokens)
    scheduler = Scheduler(
        BlockPool(limits.num_blocks),
        pacer,
        FairShares(pacer, limits.num_blocks) if settings.api_keys is not None else Alone(pacer),
        block_size=settings.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        step_sizes=limits.step_sizes,
        prefix_caching=settings.prefix_caching,
    )
    return EngineCore(scheduler, built.worker, settings.overlap), _ready(
        built, "generate", settings, imported - started
    )


def build_encoder_engine(
    settings: Settings, model_folder: Path, config: EncoderConfig
) -> tuple[EncoderCore, EngineReady]:
    """The same for an encoder."""
    started = time.monotonic()
    from app.worker.encoder_factory import build_encoder

    imported = time.monotonic()
    built = build_encoder(settings, model_folder, config)
    return EncoderCore(built.worker, built.limits), _ready(built, config.task, settings, imported - started)


def _ready(built: BuiltWorker | BuiltEncoder, task: Task, settings: Settings, import_seconds: float) -> EngineReady:
    limits = built.limits
    return EngineReady(
        task=task,
        architecture=built.architecture,
        model_impl=built.model_impl,
        device=built.device,
        dtype=built.dtype,
        vocab_size=built.vocab_size,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        block_size=settings.block_size,
        num_kv_blocks=limits.num_blocks,
        startup_seconds={"import": import_seconds, **built.startup_seconds},
    )
