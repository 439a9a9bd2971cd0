"""The automatic limits of a step, for every kind of worker; free of torch."""

import logging
from dataclasses import replace

from ..core.step import KVGroup, Limits
from ..errors import StartupError
from ..settings import Settings

log = logging.getLogger(__name__)


def initial_limits(settings: Settings, max_model_len: int, is_fast: bool) -> Limits:
    """What can be said before there are KV blocks: there are no `groups`. `is_fast`: a step takes as long as on a GPU.

    Raises StartupError for settings that contradict each other.
    """
    max_num_seqs = settings.max_num_seqs or (256 if is_fast else 64)
    limits = Limits(
        groups=(),
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


def with_groups(limits: Limits, settings: Settings, groups: tuple[KVGroup, ...]) -> Limits:
    """The limits with this KV memory: it has to hold one longest request.

    If it does not, max_model_len shrinks; but one that was asked for raises StartupError.
    """
    block_size = settings.block_size
    longest = limits.max_model_len
    for group in groups:
        # A window's blocks hold any request, if there are enough for the window and a step.
        held = longest
        if group.window is not None:
            held = min(longest, group.window + limits.max_num_batched_tokens + 2 * block_size)
        if group.num_blocks * block_size < held:
            longest = min(longest, group.num_blocks * block_size)
    if longest < limits.max_model_len and (settings.max_model_len or longest < 2):
        raise StartupError(
            f"{longest // block_size} KV blocks are too few: one request of {limits.max_model_len} tokens needs "
            f"{-(-limits.max_model_len // block_size)}. Lower max_model_len, or raise num_kv_blocks or kv_cache_memory"
        )
    if longest < limits.max_model_len:
        log.warning(
            "max_model_len is %d instead of %d: more tokens than that do not fit into the KV blocks",
            longest,
            limits.max_model_len,
        )
    return replace(limits, groups=groups, max_model_len=longest)
