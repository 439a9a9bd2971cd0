"""The memory of the KV blocks: which layers share block numbers, and how many blocks each group of them gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..attention.backends.base import AttentionBackend
from ..attention.layer import Attention, CrossAttention
from ..core.step import KVGroup
from ..kernels.kv import bytes_of_token


@dataclass(frozen=True)
class LayerGroup:
    """Layers that keep their K and V for the same tokens, and so share the numbers of their blocks."""

    layers: Sequence[Attention | CrossAttention]
    window: int | None
    """Only that many tokens are needed; None if all of them are."""
    block_bytes: int
    """Of one block, in all of its layers together."""

    def most_blocks(self, block_size: int, max_num_seqs: int, max_num_batched_tokens: int) -> int | None:
        """Blocks that are always enough, however long requests are; None if there is no such number.

        A row holds what lies in its window, which begins and ends within a block, and the tokens of the step.
        """
        if self.window is None:
            return None
        of_a_row = -(-self.window // block_size) + 2
        return max_num_seqs * of_a_row + -(-max_num_batched_tokens // block_size)


def group_layers(
    layers: Sequence[Attention], max_model_len: int, block_size: int, kv_dtype: torch.dtype, keeps_values: bool
) -> list[LayerGroup]:
    """Group layers by their windows. A window that holds the longest request is none.

    `keeps_values`: see `app.attention.registry.Capabilities`.
    """
    by_window: dict[int | None, list[Attention]] = {}
    for layer in layers:
        window = layer.config.window
        by_window.setdefault(None if window is None or window >= max_model_len else window, []).append(layer)
    groups = []
    for index, (window, members) in enumerate(by_window.items()):
        of_token = 0
        for layer in members:
            layer.cache.group, config = index, layer.config
            kept = config.v_head_dim if keeps_values or not config.values_in_keys else 0
            of_token += bytes_of_token(config.num_kv_heads, config.head_dim, kept, kv_dtype)
        groups.append(LayerGroup(members, window, of_token * block_size))
    return groups


def cross_group(layers: Sequence[CrossAttention], block_size: int, kv_dtype: torch.dtype) -> LayerGroup:
    """The layers that attend to what encoders have read. Their blocks are no group of those that requests grow in."""
    of_token = sum(
        bytes_of_token(layer.config.num_kv_heads, layer.config.head_dim, layer.config.v_head_dim, kv_dtype)
        for layer in layers
    )
    return LayerGroup(layers, None, of_token * block_size)


def size_groups(groups: Sequence[LayerGroup], num_blocks: int, most: Sequence[int | None]) -> tuple[KVGroup, ...]:
    """Each group gets `num_blocks`, but no more than it can use; `most`: see `LayerGroup.most_blocks`."""
    return tuple(
        KVGroup(num_blocks if limit is None else min(num_blocks, limit), group.window)
        for group, limit in zip(groups, most, strict=True)
    )


def bytes_of(groups: Sequence[LayerGroup], sizes: Sequence[KVGroup]) -> int:
    """What these numbers of blocks take together."""
    return sum(group.block_bytes * size.num_blocks for group, size in zip(groups, sizes, strict=True))


def bind_kv_cache(
    groups: Sequence[LayerGroup],
    num_blocks: Sequence[int],
    backend: AttentionBackend[Any],
    block_size: int,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give each layer its K/V cache. A block id means the same place in every layer of a group."""
    for group, count in zip(groups, num_blocks, strict=True):
        configs = [layer.config for layer in group.layers]
        caches = backend.allocate(configs, count, block_size, kv_dtype, device)
        for layer, cache in zip(group.layers, caches, strict=True):
            layer.cache.kv = cache
