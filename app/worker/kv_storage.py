"""The memory of the KV blocks."""

from typing import Any

import torch

from app.attention.backends.base import AttentionBackend
from app.attention.layer import Attention


def bytes_per_block(layers: list[Attention], block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes, in all layers together."""
    per_token = sum(layer.config.num_kv_heads * (layer.config.head_dim + layer.config.v_head_dim) for layer in layers)
    return per_token * block_size * dtype.itemsize


def bind_kv_cache(
    layers: list[Attention],
    backend: AttentionBackend[Any],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give each layer its K/V cache. A block id means the same place in every layer."""
    for layer in layers:
        layer.k_cache, layer.v_cache = backend.allocate(layer.config, num_blocks, block_size, dtype, device)
