"""What depends on the model and the machine: "auto" settings become values, and the log says why.

How much is done at once is in `app.worker.limits`, since workers without a model need it too.
"""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoint.adapter import read_adapter
from ..checkpoint.folder import ModelFolder
from ..core.machine import free_memory, usable_cpus
from ..core.step import CrossMemory, KVGroup, Limits, RowStates
from ..errors import StartupError
from ..layers.methods.float8 import has_kernel as multiplies_float8
from ..layers.methods.onednn import has_bfloat16
from ..settings import Settings
from .execution import StepMemory
from .kv_storage import LayerGroup, bytes_of, size_groups
from .limits import initial_limits, with_groups

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LEAST_ADAPTERS, _LEAST_RANK = 4, 16
"""Room for adapters that may come while the service runs."""
_FALLBACK_LENGTH = 2048
"""Context of a model that does not say what it was made for."""
_KV_SHARE_OF_MEMORY = 0.5
"""Of a computer's memory that is free once the weights are loaded, at most. The rest is for activations, and for other
programs."""
_CUDA_CONTEXT = 2**29
"""Bytes that CUDA itself takes of a GPU for a process, about."""
_SHARE_OF_STATES = 0.5
"""Of the memory for what requests keep, at most; the rest is for KV blocks."""
_SHARE_OF_CONTEXT = 1 / 8
_LEAST_OF_CONTEXT = 1024
"""On a CPU, each of `max_num_seqs` requests can have this share of the context, and at least so many tokens: few are
longer, and the memory is not the service's alone, as a GPU's is."""


@dataclass(frozen=True)
class Resolved:
    """What the engine runs with."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    """Of K and V in the cache."""
    limits: Limits
    """Without KV blocks, until the weights are loaded."""
    max_rank: int = 0
    """Of adapters."""


def resolve(settings: Settings, folder: ModelFolder) -> Resolved:
    """Fill in what the settings leave open; StartupError for what this machine cannot do."""
    device = _device(settings)
    dtype = _dtype(settings, folder, device)
    if settings.kv_dtype == "fp8" and device.type == "cuda" and not multiplies_float8(device):
        raise StartupError("kv_dtype: fp8 takes a GPU of compute capability 8.9 or more")
    _check_draft_model(settings)
    limits = initial_limits(settings, _max_model_len(settings, folder), device.type == "cuda")
    num_adapters, max_rank = _adapters(settings)
    limits = replace(limits, num_adapters=num_adapters)
    return Resolved(device, dtype, _KV_DTYPES.get(settings.kv_dtype, dtype), limits, max_rank)


def _adapters(settings: Settings) -> tuple[int, int]:
    """How many adapters there is to be room for, and of which rank."""
    ranks = [read_adapter(Path(folder)).largest_rank for folder in settings.lora.values()]
    if not ranks and not settings.lora_loading:
        if settings.max_loras or settings.max_lora_rank:
            raise StartupError("max_loras, max_lora_rank: without lora or lora_loading they have no use")
        return 0, 0
    least, least_rank = (_LEAST_ADAPTERS, _LEAST_RANK) if settings.lora_loading else (0, 0)
    if settings.max_loras and settings.max_loras < len(ranks):
        raise StartupError(f"max_loras: {settings.max_loras} is less than the {len(ranks)} adapters of lora")
    return settings.max_loras or max(least, len(ranks)), settings.max_lora_rank or max(least_rank, *ranks, 0)


def _check_draft_model(settings: Settings) -> None:
    if settings.speculate == "draft" and settings.draft_model is None:
        raise StartupError("speculate: draft needs a draft_model")
    if settings.draft_model is not None and not settings.drafts_by_model:
        raise StartupError(f"draft_model: with speculate {settings.speculate} it has no use")


def _device(settings: Settings) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise StartupError("device: no CUDA device, or a torch without CUDA")
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(settings.cpu_threads or usable_cpus())
        log.info("device cpu, %d threads", torch.get_num_threads())
    else:
        # cuDNN's attention makes a plan for each new shape, which takes a second. A step's shape is nearly always new.
        torch.backends.cuda.enable_cudnn_sdp(False)
        # Or convolutions of a float32 model would round what they multiply to 11 significant bits.
        torch.backends.cudnn.allow_tf32 = False
        log.info("device %s", torch.cuda.get_device_name(device))
    return device


def _dtype(settings: Settings, folder: ModelFolder, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return _DTYPES[settings.dtype]
    stored = _DTYPES[folder.dtype]
    if device.type == "cpu" and stored is not torch.float32:
        # Without bfloat16 instructions a CPU converts every weight at every use, which is slower than float32.
        fast = has_bfloat16()
        dtype = torch.bfloat16 if fast else torch.float32
        log.info("dtype %s: the CPU is %s at bfloat16", dtype, "fast" if fast else "slow")
        return dtype
    log.info("dtype %s: the checkpoint's", stored)
    return stored


def _max_model_len(settings: Settings, folder: ModelFolder) -> int:
    made_for = folder.max_position_embeddings
    if settings.max_model_len and made_for and settings.max_model_len > made_for:
        raise StartupError(
            f"max_model_len: {settings.max_model_len} is more than the {made_for} the model was made for"
        )
    if settings.max_model_len:
        length, reason = settings.max_model_len, "as set"
    elif made_for:
        length, reason = made_for, "what the model was made for"
    else:
        length, reason = _FALLBACK_LENGTH, "the model does not say what it was made for"
    log.info("context of %d tokens: %s", length, reason)
    return length


def resolve_states(settings: Settings, resolved: Resolved, bytes_of_row: int, continues_prompts: bool) -> Limits:
    """Decide how many recurrent states are kept, and how prompts are computed; call it when the weights are loaded.

    There are as many snapshots as rows, if they can be made use of, and if there is memory. StartupError if so many
    requests as are asked for cannot keep their states.
    """
    limits, asked = resolved.limits, settings.max_num_seqs
    size = settings.kv_cache_memory or _memory_to_keep(settings, resolved.device)
    most = max(1, int(size * _SHARE_OF_STATES) // bytes_of_row)
    has_snapshots = settings.prefix_caching and continues_prompts
    rows = asked or max(1, min(limits.max_num_seqs, most // 2 if has_snapshots else most))
    if rows > most:
        raise StartupError(
            f"max_num_seqs: the recurrent states of {rows} requests take {rows * bytes_of_row / 2**30:.2f} GiB, and "
            f"there is memory for those of {most}"
        )
    num_snapshots = min(rows, most - rows) if has_snapshots else 0
    memory = (rows + num_snapshots) * bytes_of_row / 2**30
    log.info("recurrent states of %d requests, and %d snapshots of states (%.2f GiB)", rows, num_snapshots, memory)
    log.info("no drafts: recurrent states do not go back")
    limits = replace(limits, max_num_seqs=rows, states=RowStates(num_snapshots))
    if continues_prompts:
        return limits
    most_tokens = max(limits.max_num_batched_tokens, limits.max_model_len + rows)
    log.info(
        "no prefix caching, prompts are computed whole, and a step has up to %d tokens: this model cannot go on with a "
        "prompt from a state",
        most_tokens,
    )
    return replace(limits, chunked_prefill=False, max_num_batched_tokens=most_tokens)


def _memory_to_keep(settings: Settings, device: torch.device) -> int:
    """Bytes for what requests keep, if steps took nothing."""
    free = _free_memory(device)
    if device.type == "cpu":
        return int(free * _KV_SHARE_OF_MEMORY * (settings.memory_share or 1))
    return _gpu_memory_left(settings, device, free, StepMemory(0, 0))


def max_source_len(path: Path, limits: Limits) -> int:
    """Most tokens that the encoder of an encoder-decoder reads, or makes of a sound."""
    described = ModelFolder(path).encoder_decoder
    assert described is not None
    # Where no table bounds it, the encoder reads as much as the decoder may write.
    return described.max_source_len or limits.max_model_len


def _num_cross_blocks(num_blocks: int, limits: Limits, block_size: int, source_len: int) -> int:
    """Blocks of cross-attention beside `num_blocks` of the others: in proportion to what a request may have of each."""
    most = limits.max_num_seqs * -(-source_len // block_size)
    return min(most, -(-num_blocks * source_len // limits.max_model_len))


def resolve_blocks(
    settings: Settings,
    resolved: Resolved,
    groups: Sequence[LayerGroup],
    memory: StepMemory,
    states: int = 0,
    cross: LayerGroup | None = None,
    source_len: int = 0,
) -> Limits:
    """Decide on the KV blocks; call it when the weights are loaded. StartupError if they do not suffice.

    `memory`: what steps take, as measured; `states`: bytes of recurrent states, which are allocated; `cross`: layers
    that attend to what encoders have read, up to `source_len` tokens.
    """
    limits, block_size = resolved.limits, settings.block_size
    most = [g.most_blocks(block_size, limits.max_num_seqs, limits.max_num_batched_tokens) for g in groups]
    useful = -(-limits.max_model_len // block_size) * limits.max_num_seqs

    def fitting(size: int) -> int:
        """The largest number of blocks that these bytes hold."""
        return bisect_right(range(1, useful + 1), size, key=bytes_with)

    def bytes_with(count: int) -> int:
        of_cross = cross.block_bytes * _num_cross_blocks(count, limits, block_size, source_len) if cross else 0
        return bytes_of(groups, size_groups(groups, count, most)) + of_cross

    if settings.num_kv_blocks:
        num_blocks, reason = settings.num_kv_blocks, "as set"
    elif settings.kv_cache_memory:
        num_blocks, reason = fitting(settings.kv_cache_memory - states), "of kv_cache_memory"
    else:
        free = _free_memory(resolved.device)
        if resolved.device.type == "cuda":
            usable, enough = _gpu_memory_left(settings, resolved.device, free, memory), useful
        else:
            # States take memory only when they are written to.
            share = _KV_SHARE_OF_MEMORY * (settings.memory_share or 1)
            usable, enough = int(free * share) - states, _enough_on_a_cpu(limits, block_size)
        num_blocks = min(enough, fitting(usable))
        reason = f"of the {free / 2**30:.1f} GiB that are free"
        if num_blocks == enough:
            reason = f"for {limits.max_num_seqs} requests of {enough // limits.max_num_seqs * block_size} tokens"
    if not groups:
        return limits
    sizes = size_groups(groups, num_blocks, most)
    log.info(
        "%s KV blocks of %d tokens in %s (%.2f GiB, %s)",
        " + ".join(f"{size.num_blocks}" + (f" (window {size.window})" if size.window else "") for size in sizes),
        block_size,
        resolved.kv_dtype,
        bytes_with(num_blocks) / 2**30,
        reason,
    )
    if cross:
        limits = replace(limits, cross=_cross_memory(num_blocks, limits, block_size, source_len))
    return with_groups(limits, settings, sizes)


def _cross_memory(num_blocks: int, limits: Limits, block_size: int, source_len: int) -> CrossMemory:
    count = _num_cross_blocks(num_blocks, limits, block_size, source_len)
    if count * block_size < source_len:
        raise StartupError(
            f"{count} KV blocks for the encoder's output are too few: an input of {source_len} tokens needs "
            f"{-(-source_len // block_size)}. Raise num_kv_blocks or kv_cache_memory"
        )
    log.info("%d KV blocks of them for encoders' outputs, of up to %d tokens", count, source_len)
    return CrossMemory(count, source_len)


def resolve_host(
    settings: Settings, device: torch.device, groups: Sequence[LayerGroup], blocks: Sequence[KVGroup]
) -> tuple[int, ...]:
    """How many blocks of each group `host_kv_cache` holds: of all the same share of those on the device.

    Raises StartupError if there is not so much memory, or if it has no use.
    """
    size, free = settings.host_kv_cache, free_memory()
    if not groups or not settings.prefix_caching:
        why = "the model keeps no KV blocks" if settings.prefix_caching else "without prefix_caching it has no use"
        raise StartupError(f"host_kv_cache: {why}")
    if size > free:
        raise StartupError(f"host_kv_cache: {size / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB of memory are free")
    share = size / bytes_of(groups, blocks)
    places = tuple(int(group.num_blocks * share) for group in blocks)
    if not all(places):
        raise StartupError("host_kv_cache: it does not hold a single KV block")
    log.info("%s KV blocks in the host's memory", " + ".join(map(str, places)))
    if device.type == "cpu":
        log.warning(
            "host_kv_cache: on a CPU, KV blocks are in that memory in any case; kv_cache_memory does without copies"
        )
    return places


def _enough_on_a_cpu(limits: Limits, block_size: int) -> int:
    """Blocks for requests of the usual length in all rows, and for one of the longest."""
    longest = limits.max_model_len
    usual = min(longest, max(_LEAST_OF_CONTEXT, int(longest * _SHARE_OF_CONTEXT)))
    return -(-max(longest, usual * limits.max_num_seqs) // block_size)


def _gpu_memory_left(settings: Settings, device: torch.device, free: int, memory: StepMemory) -> int:
    """Bytes for KV blocks; StartupError if there are none."""
    total = int(torch.cuda.mem_get_info(device)[1])
    share = settings.gpu_memory_utilization
    used = total - free
    if settings.memory_share:  # what the other models use is theirs
        share *= settings.memory_share
        used = torch.cuda.memory_reserved(device) + _CUDA_CONTEXT
    allowed = int(total * share)
    left = min(allowed - used, free) - sum(memory)
    parts = (
        f"{allowed / 2**30:.2f} GiB ({share:.0%} of {total / 2**30:.2f}) "
        f"less {used / 2**30:.2f} in use (weights and all), "
        f"{memory.activations / 2**30:.2f} for the largest step "
        f"and {memory.graphs / 2**30:.2f} for CUDA graphs"
    )
    log.info("memory for KV blocks: %.2f GiB = %s", left / 2**30, parts)
    if left <= 0:
        raise StartupError(
            f"gpu_memory_utilization: nothing is left for KV blocks: {parts}. Raise it, or lower "
            "max_num_batched_tokens, or take a smaller model"
        )
    return left


# ---------------------------------------------------------------------- what the machine has


def _free_memory(device: torch.device) -> int:
    """Bytes; a container's limit counts."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()
