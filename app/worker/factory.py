"""Building a worker from settings."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer

from ..attention.backends.base import AttentionBackend
from ..attention.registry import Capabilities, Recordable, choose_backend
from ..checkpoint.draft_head import is_draft_head, read_draft_head
from ..checkpoint.folder import ModelFolder
from ..checkpoint.source import find_model
from ..core.step import MAX_WITH_DRAFTS, BuiltWorker, HostMemory, Limits, WorkerOutOfMemoryError
from ..errors import StartupError
from ..grammar.masks import GrammarMasks
from ..kernels.ops import keep_compiled
from ..models.adapters import ModelAdapters
from ..models.draft_head import DraftHead, load_draft_head
from ..models.loader import LoadedModel, load_model
from ..settings import Settings, cache_folder
from .aligner import Aligner
from .batch import InputBatch
from .draft_head import HeadDrafter
from .draft_model import DraftModel
from .encoder_outputs import EncoderOutputs
from .execution import Eager, Execution, StepMemory
from .host_blocks import HostBlocks, bytes_on_device
from .kv_storage import LayerGroup, bind_kv_cache, cross_group, group_layers
from .model_state import ModelState, NoState, Several
from .recurrent_states import RecurrentStates, StatesInSlots
from .resolve import Resolved, max_source_len, resolve, resolve_blocks, resolve_host, resolve_states
from .runner import ModelRunner
from .sampling.base import Sampling

log = logging.getLogger(__name__)


def build_worker(settings: Settings, path: Path) -> BuiltWorker:
    """Load the model in a folder and allocate its KV blocks. Raises StartupError."""
    clock = _PhaseClock()
    folder = ModelFolder.open(path)
    resolved = resolve(settings, folder)
    keep_compiled(cache_folder(), resolved.device)
    clock.lap("resolve")
    try:
        length, takes_adapters = resolved.limits.max_model_len, resolved.limits.num_adapters > 0
        sees = settings.images and folder.reads_images
        loaded = load_model(folder, settings, resolved.dtype, resolved.device, length, takes_adapters, sees)
        if loaded.recurrent_layers and settings.drafts_by_model:
            raise StartupError(
                "draft_model: the model keeps recurrent states, which cannot go back behind wrong drafts"
            )
        if loaded.cross_layers and settings.drafts_by_model:
            raise StartupError("draft_model: the model is an encoder-decoder, for which no other model guesses")
        adapters = _make_adapters(resolved, loaded) if resolved.limits.num_adapters else None
        draft = _load_draft_model(settings, resolved, loaded, path) if settings.drafts_by_model else None
        clock.lap("load_weights")
        worker, limits = _build_runner(settings, resolved, loaded, draft, path, clock)
        worker.adapters = adapters
    except (torch.cuda.OutOfMemoryError, WorkerOutOfMemoryError) as error:
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
        reads_images=sees,
        startup_seconds=clock.seconds,
    )


def _make_adapters(resolved: Resolved, loaded: LoadedModel) -> ModelAdapters:
    """Room for adapters in a model's layers."""
    like = torch.empty(0, dtype=resolved.dtype, device=resolved.device)
    return ModelAdapters(loaded.model, resolved.limits.num_adapters, resolved.max_rank, like)


def _load_draft_model(
    settings: Settings, resolved: Resolved, served: LoadedModel, served_path: Path
) -> LoadedModel | DraftHead:
    """The smaller model, or the draft head, that guesses for another model.

    Vocabularies are the same if they have all tokens of the tokenizer: models of one family and of several sizes often
    differ in the rows behind them, which are there to make a round number.
    """
    path = find_model(str(settings.draft_model), needs_weights=settings.load_format != "dummy")
    folder, length = ModelFolder.open(path), resolved.limits.max_model_len
    if is_draft_head(folder):
        return _load_draft_head(folder, resolved, served)
    if (made_for := folder.max_position_embeddings) and made_for < length:
        raise StartupError(f"draft_model: it was made for {made_for} tokens, and max_model_len is {length}")
    draft = load_model(folder, settings, resolved.dtype, resolved.device, length)
    if draft.vocab_size != served.vocab_size and min(draft.vocab_size, served.vocab_size) < _num_tokens(served_path):
        raise StartupError(
            f"draft_model: its vocabulary has {draft.vocab_size:,} tokens, the model's {served.vocab_size:,}"
        )
    if any((layer.config.window or sys.maxsize) < length for layer in draft.attention_layers):
        raise StartupError("draft_model: its layers have sliding windows, which draft models may not have")
    if draft.recurrent_layers:
        raise StartupError("draft_model: it keeps recurrent states, which draft models may not")
    return draft


def _num_tokens(path: Path) -> int:
    """How many rows of a vocabulary the tokenizer in a folder uses."""
    file = path / "tokenizer.json"
    if not file.is_file():  # it may be a model of numbers
        return sys.maxsize
    return max(Tokenizer.from_file(str(file)).get_vocab().values()) + 1


def _load_draft_head(folder: ModelFolder, resolved: Resolved, served: LoadedModel) -> DraftHead:
    if resolved.device.type != "cpu":
        raise StartupError("draft_model: draft heads run on a CPU only")
    config = read_draft_head(folder)
    for name in ("hidden_size", "vocab_size"):
        made_for, found = getattr(config, name), getattr(served, name)
        if made_for != found:
            raise StartupError(f"draft_model: it was made for a {name} of {made_for:,}, and the model's is {found:,}")
    return load_draft_head(folder, resolved.dtype, resolved.device)


@dataclass(frozen=True)
class _Plan:
    """What the runners of a worker have in common: that of the model, and that of a draft model."""

    settings: Settings
    path: Path
    resolved: Resolved
    """With the limits that the model's layers have."""
    chosen: Capabilities
    served: LoadedModel
    groups: list[LayerGroup]
    source_len: int
    """Most tokens that an encoder reads; 0 for a model without cross-attention."""
    cross: LayerGroup | None

    @property
    def limits(self) -> Limits:
        return self.resolved.limits

    @property
    def max_entries(self) -> int:
        """Most places of a step at which tokens are sampled."""
        return max(self.limits.max_num_seqs, min(self.limits.max_num_batched_tokens, MAX_WITH_DRAFTS))

    @property
    def num_snapshots(self) -> int:
        return self.limits.states.num_snapshots if self.limits.states else 0

    @property
    def bytes_of_states(self) -> int:
        return (self.limits.max_num_seqs + self.num_snapshots) * _bytes_of_row(self.served)

    @property
    def most_blocks(self) -> int:
        """As many as a step of prompts fills."""
        return -(-self.limits.max_num_batched_tokens // self.settings.block_size)


def _build_runner(
    settings: Settings,
    resolved: Resolved,
    loaded: LoadedModel,
    draft: LoadedModel | DraftHead | None,
    path: Path,
    clock: "_PhaseClock",
) -> tuple[ModelRunner, Limits]:
    """Put a runner together, give it its KV blocks, and have it do all that is done once."""
    plan = _plan(settings, resolved, loaded, draft, path)
    runner = _make_runner(plan, plan.served)
    guessing = _make_runner(plan, draft, runner) if isinstance(draft, LoadedModel) else None
    memory = _measure(plan, runner, guessing)
    clock.lap("measure_memory")
    limits = _allocate(plan, runner, memory)
    clock.lap("allocate_kv_cache")
    runner.prepare()
    if guessing and isinstance(draft, LoadedModel):
        guessing.prepare()
        runner.drafter = DraftModel(guessing, min(loaded.vocab_size, draft.vocab_size), limits.max_num_batched_tokens)
    if isinstance(draft, DraftHead):
        sizes = draft.config.num_tokens, 1, resolved.device
        execution, _ = _execution(plan.chosen.recordable, limits, runner.backend, *sizes)
        runner.drafter = drafter = HeadDrafter(draft, execution, runner.batch, limits.max_num_seqs)
        drafter.prepare()
    if loaded.cross_layers:
        runner.aligner = Aligner(cast(Any, loaded.model))
    clock.lap("warm_up")
    return runner, replace(limits, step_sizes=runner.execution.step_sizes)


def _plan(
    settings: Settings, resolved: Resolved, loaded: LoadedModel, draft: LoadedModel | DraftHead | None, path: Path
) -> _Plan:
    """Choose what attends and what computes recurrent layers, and group the layers that keep K and V."""
    kv_dtype = resolved.kv_dtype
    chosen = choose_backend(
        settings.attention_backend, resolved.device, resolved.dtype, kv_dtype, settings.batch_invariant
    )
    if loaded.recurrent_layers and chosen.recordable != "nothing":  # else there are no kernels at all
        from ..models.at_once import compute_at_once  # transformers takes seconds, and is there if this is needed

        loaded = compute_at_once(loaded)
    if bytes_of_row := _bytes_of_row(loaded):
        resolved = replace(resolved, limits=resolve_states(settings, resolved, bytes_of_row, loaded.continues_prompts))
    limits = replace(resolved.limits, whole_media=_sees_ahead(loaded))
    if limits.whole_media:
        _check_room_for_images(limits, cast(Any, loaded.model).tokens_at_once)
    layers = loaded.attention_layers + (draft.attention_layers if isinstance(draft, LoadedModel) else [])
    source_len = max_source_len(path, limits) if loaded.cross_layers else 0
    return _Plan(
        settings=settings,
        path=path,
        resolved=replace(resolved, limits=limits),
        chosen=chosen,
        served=loaded,
        groups=group_layers(layers, limits.max_model_len, settings.block_size, kv_dtype, chosen.keeps_values),
        source_len=source_len,
        cross=cross_group(loaded.cross_layers, settings.block_size, kv_dtype) if source_len else None,
    )


def _bytes_of_row(model: LoadedModel) -> int:
    """Bytes of a request's recurrent states."""
    return sum(layer.bytes_of_slot for layer in model.recurrent_layers)


def _make_runner(plan: _Plan, model: LoadedModel, tables_of: ModelRunner | None = None) -> ModelRunner:
    """A runner without KV blocks. `tables_of`: whose blocks it uses, for a draft model."""
    limits, device = plan.limits, plan.resolved.device
    configs = [layer.config for layer in model.attention_layers]
    backend = plan.chosen.make(configs, len(plan.groups), plan.settings.batch_invariant)
    # A step that is recorded runs several times before it counts, and states would go on each time. What a step sees of
    # encoders' outputs is said on the host.
    is_plain = all(layer.at_once for layer in model.recurrent_layers) and not model.cross_layers
    recordable = plan.chosen.recordable if is_plain else "nothing"
    of_model = replace(limits, num_adapters=limits.num_adapters if model is plan.served else 0)
    execution, sampling = _execution(recordable, of_model, backend, model.vocab_size, plan.max_entries, device)
    return ModelRunner(
        loaded=model,
        state=_state(plan, model, execution),
        backend=backend,
        execution=execution,
        sampling=sampling,
        grammars=GrammarMasks(plan.path, model.vocab_size),
        batch=InputBatch(
            limits.max_num_seqs,
            limits.max_model_len,
            plan.settings.block_size,
            len(plan.groups),
            tables_of=tables_of.batch if tables_of else None,
            sees_ahead=_sees_ahead(model),
        ),
        max_entries=plan.max_entries,
        device=device,
        tables_of=tables_of,
    )


def _state(plan: _Plan, model: LoadedModel, execution: Execution) -> ModelState:
    """What a kind of model keeps of requests beside K and V."""
    limits, device = plan.limits, plan.resolved.device
    state: ModelState = NoState()
    if model.recurrent_layers:
        kind = StatesInSlots if all(layer.at_once for layer in model.recurrent_layers) else RecurrentStates
        state = kind(model.recurrent_layers, limits.max_num_seqs, plan.num_snapshots, device)
    if plan.source_len:
        state = _encoder_outputs(model, plan.chosen, limits, plan.source_len, plan.settings.block_size, device)
    if model.reads_images:
        from .image_states import ImageStates  # transformers takes seconds, and is there if this is needed

        images = ImageStates(cast(Any, model.model), limits.max_num_seqs, execution.largest.tokens, device)
        state = Several(state, images) if model.recurrent_layers else images
    return state


def _bind(plan: _Plan, runner: ModelRunner, sizes: Sequence[int], cross_size: int) -> None:
    """Give layers so many blocks."""
    storage = runner.backend, plan.settings.block_size, plan.resolved.kv_dtype, plan.resolved.device
    bind_kv_cache(plan.groups, sizes, *storage)
    if plan.cross and cross_size:
        bind_kv_cache([plan.cross], [cross_size], *storage)


def _measure(plan: _Plan, runner: ModelRunner, guessing: ModelRunner | None) -> StepMemory:
    """What steps take beside weights, states and KV blocks."""
    _bind(plan, runner, [1] * len(plan.groups), 1)  # to measure without
    memory = runner.measure_memory()
    if guessing:
        memory = StepMemory(*map(sum, zip(memory, guessing.measure_memory(), strict=True)))
    if plan.settings.host_kv_cache:
        of_copies = bytes_on_device(plan.groups, plan.most_blocks, plan.resolved.device)
        memory = memory._replace(activations=memory.activations + of_copies)
    return memory


def _allocate(plan: _Plan, runner: ModelRunner, memory: StepMemory) -> Limits:
    """Allocate KV blocks on the device and in the host's memory; the limits with their numbers."""
    settings, resolved, groups = plan.settings, plan.resolved, plan.groups
    limits = resolve_blocks(settings, resolved, groups, memory, plan.bytes_of_states, plan.cross, plan.source_len)
    _bind(plan, runner, [group.num_blocks for group in limits.groups], limits.cross.num_blocks if limits.cross else 0)
    if settings.host_kv_cache:
        places = resolve_host(settings, resolved.device, groups, limits.groups)
        runner.host = HostBlocks(groups, places, runner.backend, resolved.device, plan.most_blocks)
        limits = replace(limits, host=HostMemory(places, runner.host.measure()))
    return limits


def _encoder_outputs(
    model: LoadedModel, chosen: Capabilities, limits: Limits, source_len: int, block_size: int, device: torch.device
) -> EncoderOutputs:
    """The state of an encoder-decoder's rows."""
    from ..models.encoder_decoder import EncoderDecoder

    assert isinstance(model.model, EncoderDecoder)
    backend = chosen.make([layer.config for layer in model.cross_layers], 1, False)
    sizes = limits.max_num_seqs, source_len, limits.max_num_batched_tokens, block_size
    return EncoderOutputs(model.model, backend, *sizes, device)


def _check_room_for_images(limits: Limits, num_tokens: int) -> None:
    """StartupError if a step has no room for an image whose tokens see each other, beside decodes of all others."""
    if num_tokens > limits.max_num_batched_tokens - limits.max_num_seqs:
        raise StartupError(
            f"max_num_batched_tokens: an image's {num_tokens} tokens have to fit a step, beside decodes of "
            f"{limits.max_num_seqs} requests; raise it, lower max_num_seqs, or turn images off"
        )


def _sees_ahead(model: LoadedModel) -> bool:
    return any(layer.config.sees_ahead for layer in model.attention_layers)


def _execution(
    recordable: Recordable,
    limits: Limits,
    backend: AttentionBackend[Any],
    vocab_size: int,
    max_entries: int,
    device: torch.device,
) -> tuple[Execution, Sampling]:
    """How steps run, and what samples. Each imports kernels that only its device has."""
    if recordable == "steps":
        from .recorded import Recorded
        from .sampling.gpu import GpuSampling

        recorded = Recorded(
            device,
            max_num_seqs=limits.max_num_seqs,
            max_entries=max_entries,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            long_past=backend.long_past if limits.max_model_len > backend.long_past else None,
            has_adapters=limits.num_adapters > 0,
        )
        return recorded, GpuSampling(limits.max_num_seqs, max_entries, vocab_size, device)
    from .sampling.cpu import CpuSampling

    sampling = CpuSampling(limits.max_num_seqs, max_entries, vocab_size, device)
    if recordable == "decodes":
        from .taped import Taped

        return Taped(limits.max_num_seqs, max_entries, limits.max_num_batched_tokens), sampling
    sizes = limits.max_num_seqs, max_entries, limits.max_num_batched_tokens
    return Eager(*sizes, is_on_gpu=device.type == "cuda"), sampling


class _PhaseClock:
    """Durations of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now
