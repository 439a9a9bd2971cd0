"""What an attention backend does."""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from app.attention.layer import Attention, AttentionConfig, HeadNorms

Metadata = TypeVar("Metadata", contravariant=True)
"""How a backend wants the shape of a step."""


class AttentionBackend(Protocol[Metadata]):
    """Computes paged attention on some device, with a cache layout of its own."""

    def allocate(
        self, config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """A layer's K and V cache."""
        ...

    def store(self, layer: Attention, k: Tensor, v: Tensor, metadata: Metadata) -> None:
        """Write the step's K and V to the layer's cache; see `Attention.forward`."""
        ...

    def rotate_and_store(
        self,
        layer: Attention,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: Metadata,
    ) -> Tensor:
        """Norm, rotate and store; returns the queries (tokens, num_heads, head_dim). See `Attention.forward_merged`."""
        ...

    def attend(self, layer: Attention, q: Tensor, metadata: Metadata) -> Tensor:
        """Attend to what is stored: (tokens, num_heads, head_dim) to (tokens, num_heads * v_head_dim)."""
        ...
