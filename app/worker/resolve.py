"""All automatic decisions in one place: every "auto" setting becomes a value, and the log says why."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from app.core.step import Limits
from app.errors import StartupError
from app.models.loader import DTYPES, ModelFolder
from app.settings import Settings

log = logging.getLogger(__name__)

_FALLBACK_LENGTH = 2048
"""Context of a model that does not say what it was made for."""
_KV_SHARE_OF_MEMORY = 0.5
"""Of the memory that is free once the weights are loaded. The rest is for activations, and for other programs."""


@dataclass(frozen=True)
class Resolved:
    """What the engine runs with; no value is left open. For the limits, see `app.core.step.Limits`."""

    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_itl: float


def resolve(settings: Settings, folder: ModelFolder) -> Resolved:
    """Fill in what the settings leave open; StartupError for what this machine cannot do."""
    device = _device(settings)
    on_gpu = device.type == "cuda"
    max_num_seqs = settings.max_num_seqs or (256 if on_gpu else 64)
    resolved = Resolved(
        device=device,
        dtype=_dtype(settings, folder, device),
        max_model_len=_max_model_len(settings, folder),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens or max(8192 if on_gpu else 512, max_num_seqs),
        max_itl=(settings.max_itl or (50.0 if on_gpu else 200.0)) / 1000,
    )
    if resolved.max_num_batched_tokens < resolved.max_num_seqs:
        raise StartupError("max_num_batched_tokens must be at least max_num_seqs: each running request gets a token")
    log.info(
        "up to %d requests and %d tokens in a step, pauses up to %.0f ms",
        resolved.max_num_seqs,
        resolved.max_num_batched_tokens,
        resolved.max_itl * 1000,
    )
    return resolved


def _device(settings: Settings) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise StartupError("device: no CUDA device, or a torch without CUDA")
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(settings.cpu_threads or len(os.sched_getaffinity(0)))
        log.info("device cpu, %d threads", torch.get_num_threads())
    else:
        # cuDNN's attention makes a plan for each new shape, which takes a second. A step's shape is nearly always new.
        torch.backends.cuda.enable_cudnn_sdp(False)
        log.info("device %s", torch.cuda.get_device_name(device))
    return device


def _dtype(settings: Settings, folder: ModelFolder, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    stored = folder.dtype
    if device.type == "cpu" and stored is not torch.float32:
        # Without bfloat16 instructions a CPU converts every weight at every use, which is slower than float32.
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
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
    length = settings.max_model_len or made_for or _FALLBACK_LENGTH
    log.info("context of %d tokens: %s", length, "as set" if settings.max_model_len else "what the model was made for")
    return length


def resolve_limits(settings: Settings, resolved: Resolved, bytes_per_block: int) -> Limits:
    """Decide on the KV blocks; call it when the weights are loaded. StartupError if they do not suffice."""
    needed = -(-resolved.max_model_len // settings.block_size)
    if settings.num_kv_blocks:
        num_blocks, reason = settings.num_kv_blocks, "as set"
    elif settings.kv_cache_memory:
        num_blocks, reason = settings.kv_cache_memory // bytes_per_block, "of kv_cache_memory"
    else:
        free = _free_memory(resolved.device)
        useful = needed * resolved.max_num_seqs
        num_blocks = min(int(free * _KV_SHARE_OF_MEMORY) // bytes_per_block, useful)
        reason = f"of the {free / 2**30:.1f} GiB that are free" if num_blocks < useful else "all that can be used"
    log.info(
        "%d KV blocks of %d tokens (%.2f GiB, %s)",
        num_blocks,
        settings.block_size,
        num_blocks * bytes_per_block / 2**30,
        reason,
    )
    if num_blocks < needed:
        raise StartupError(
            f"{num_blocks} KV blocks are too few: one request of {resolved.max_model_len} tokens needs {needed} "
            f"({needed * bytes_per_block / 2**20:.0f} MiB). Lower max_model_len or raise kv_cache_memory"
        )
    return Limits(
        num_blocks=num_blocks,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_itl=resolved.max_itl,
    )


def _free_memory(device: torch.device) -> int:
    """Bytes; a container's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_read_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control group, or "max"
        return None
