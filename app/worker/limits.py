"""How much a worker takes at once: the automatic limits of every kind of worker. Torch is not needed."""

import logging
from dataclasses import replace

from app.core.step import Limits
from app.errors import StartupError
from app.settings import Settings

log = logging.getLogger(__name__)


def initial_limits(settings: Settings, max_model_len: int, is_fast: bool) -> Limits:
    """What can be said before there are KV blocks: `num_blocks` is 0. `is_fast`: a step takes as long as on a GPU.

    Raises StartupError for settings that contradict each other.
    """
    max_num_seqs = settings.max_num_seqs or (256 if is_fast else 64)
    limits = Limits(
        num_blocks=0,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens or max(8192 if is_fast else 512, max_num_seqs),
        max_itl=(settings.max_itl or (50.0 if is_fast else 200.0)) / 1000,
    )
    if limits.max_num_batched_tokens < limits.max_num_seqs:
        raise StartupError(
            f"max_num_batched_tokens: {limits.max_num_batched_tokens} is less than max_num_seqs, which is "
            f"{limits.max_num_seqs}: in a step, each running request gets a token"
        )
    log.info(
        "up to %d requests and %d tokens in a step, pauses up to %.0f ms",
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        limits.max_itl * 1000,
    )
    return limits


def with_blocks(limits: Limits, settings: Settings, num_blocks: int) -> Limits:
    """The limits with this many KV blocks: they have to hold one longest request.

    If they do not, max_model_len shrinks; but one that was asked for raises StartupError.
    """
    block_size = settings.block_size
    longest = min(limits.max_model_len, num_blocks * block_size)
    if longest < limits.max_model_len and (settings.max_model_len or longest < 2):
        raise StartupError(
            f"{num_blocks} KV blocks are too few: one request of {limits.max_model_len} tokens needs "
            f"{-(-limits.max_model_len // block_size)}. Lower max_model_len, or raise num_kv_blocks or kv_cache_memory"
        )
    if longest < limits.max_model_len:
        log.warning(
            "max_model_len is %d instead of %d: more tokens than that do not fit into the KV blocks",
            longest,
            limits.max_model_len,
        )
    return replace(limits, num_blocks=num_blocks, max_model_len=longest)
