"""What an attention backend does."""

from typing import Protocol

import torch
from torch import Tensor

from app.attention.context import AttentionMetadata
from app.attention.layer import Attention, AttentionConfig


class AttentionBackend(Protocol):
    """Computes paged attention on some device, with a cache layout of its own."""

    def allocate(
        self, config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """A layer's K and V cache."""
        ...

    def forward(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Store `k` and `v`, attend, and return (tokens, num_heads * v_head_dim); see `Attention.forward`."""
        ...
