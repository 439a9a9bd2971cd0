"""Putting an engine together: the one place that knows both scheduler and worker."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.folder import ModelFolder
from ..checkpoint.forecasters import ForecasterConfig
from ..checkpoint.image_models import ImageModelConfig
from ..checkpoint.predictors import Predictor, tasks_of
from ..core.step import BuiltWorker, Limits
from ..core.wire import EngineReady, Task
from ..errors import StartupError
from ..fairness.alone import Alone
from ..fairness.fair_shares import FairShares
from ..settings import Settings
from .chunk_pacer import ChunkPacer
from .core import EngineCore
from .draft_model import DraftModelProposer
from .kv_cache import KVCache
from .ngram import NgramProposer
from .scheduler import Scheduler
from .speculation import Speculation

_MOST_ROWS_WITH_DRAFTS = 32
_MOST_ON_A_CPU = 4
"""With 8, drafts have cost up to 7 % on a CPU, and gained no more."""

_has_frozen = False
"""Whether this process has frozen the objects of its imports. `gc.get_freeze_count` walks through all of them, which
takes 44 ms."""


def build_engine(settings: Settings, model_folder: Path) -> tuple[EngineCore, EngineReady]:
    """Load the model in a folder and put an engine around it. Raises StartupError."""
    folder = ModelFolder(model_folder, settings.task)
    predictor, described = (None, None) if settings.worker == "echo" else (folder.predictor, folder.encoder_decoder)
    _check_adapters(settings, predictor)
    built, import_seconds = _build_worker(settings, model_folder, predictor)
    limits = built.limits
    pacer = ChunkPacer(limits.max_itl, settings.block_size, limits.max_num_batched_tokens)
    num_blocks = limits.groups[0].num_blocks if limits.groups else 1  # nobody holds any, then
    most_tokens = limits.max_num_batched_tokens
    scheduler = Scheduler(
        KVCache(
            limits.groups,
            settings.block_size,
            most_tokens,
            settings.prefix_caching,
            limits.states,
            limits.cross,
            limits.host,
        ),
        pacer,
        FairShares(pacer, num_blocks) if settings.api_keys is not None else Alone(pacer),
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        step_sizes=limits.step_sizes,
        chunked_prefill=limits.chunked_prefill,
        speculation=None if predictor else _speculation(settings, limits),
        whole_media=limits.whole_media,
    )
    max_source_len = limits.cross.max_source_len if limits.cross else 0
    core = EngineCore(scheduler, built.worker, settings.overlap, limits.num_adapters, max_source_len)
    _load_adapters(core, settings)
    return core, _ready(built, tasks_of(predictor, described), settings, import_seconds)


def _load_adapters(core: EngineCore, settings: Settings) -> None:
    """Load those that are there from the start; StartupError names one that cannot be."""
    for name, folder in settings.lora.items():
        try:
            core.load_adapter(name, folder).result()
        except StartupError as error:
            raise StartupError(f"lora: {name}: {error}") from None


def _check_adapters(settings: Settings, predictor: Predictor | None) -> None:
    if (settings.lora or settings.lora_loading) and (predictor or settings.worker == "echo"):
        what = "models that do not generate take" if predictor else "the echo worker takes"
        raise StartupError(f"lora: {what} no adapters")


def _speculation(settings: Settings, limits: Limits) -> Speculation | None:
    """The echo worker, which costs nothing, takes no drafts."""
    if settings.speculate == "off" or settings.worker == "echo" or limits.states:
        return None
    proposer = DraftModelProposer() if settings.drafts_by_model else NgramProposer()
    most_rows = _MOST_ROWS_WITH_DRAFTS if limits.step_sizes else _MOST_ON_A_CPU
    return Speculation(proposer, limits.max_num_batched_tokens, most_rows)


def _build_worker(settings: Settings, folder: Path, predictor: Predictor | None) -> tuple[BuiltWorker, float]:
    """The worker for a model, and how many seconds the import of what it needs took.

    Imported here because torch takes a second: it is a phase of its own, and the echo worker does without.
    """
    started = time.monotonic()
    if settings.worker == "echo":
        from ..worker.echo import build_echo_worker

        return build_echo_worker(settings, folder), 0.0
    if isinstance(predictor, ForecasterConfig):
        with _no_collections():
            from ..worker.forecaster_factory import build_forecaster

        imported = time.monotonic()
        return build_forecaster(settings, folder, predictor), imported - started
    if isinstance(predictor, ImageModelConfig):
        with _no_collections():
            from ..worker.image_factory import build_image_model

        imported = time.monotonic()
        return build_image_model(settings, folder, predictor), imported - started
    if predictor:
        with _no_collections():
            from ..worker.encoder_factory import build_encoder

        imported = time.monotonic()
        return build_encoder(settings, folder, predictor), imported - started
    with _no_collections():
        from ..worker.factory import build_worker

    imported = time.monotonic()
    return build_worker(settings, folder), imported - started


@contextmanager
def _no_collections() -> Iterator[None]:
    """For imports: they make some 100,000 objects that stay, and Python would look through them again and again.

    The next engine of a process finds them there. What is left of the last one by then is not to stay.
    """
    global _has_frozen
    if _has_frozen:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        _has_frozen = True


def _ready(built: BuiltWorker, tasks: tuple[Task, ...], settings: Settings, import_seconds: float) -> EngineReady:
    limits = built.limits
    return EngineReady(
        tasks=tasks,
        architecture=built.architecture,
        model_impl=built.model_impl,
        device=built.device,
        dtype=built.dtype,
        vocab_size=built.vocab_size,
        max_model_len=limits.max_model_len,
        max_source_len=limits.cross.max_source_len if limits.cross else 0,
        max_num_seqs=limits.max_num_seqs,
        block_size=settings.block_size,
        num_kv_blocks=limits.groups[0].num_blocks if limits.groups else 0,
        reads_images=built.reads_images,
        startup_seconds={"import": import_seconds, **built.startup_seconds},
    )
