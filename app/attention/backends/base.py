"""What an attention backend does."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.kv import LayerKV
from ..config import AttentionConfig, HeadNorms, LayerCache
from ..step import StepInput, StepShape

Metadata = TypeVar("Metadata")
"""How a backend wants to have a step described."""


class AttentionBackend(Protocol[Metadata]):
    """Computes paged attention on some device, with a layout of the cache and a description of steps of its own.

    What a backend is able to do is declared where it is registered, in `app.attention.registry`.
    """

    long_past: int
    """Decodes that see more tokens than this are steps of another recorded shape; see `StepShape.is_long`."""
    block_dim: int
    """The dimension of K, V and scales that counts blocks; what lies behind it is whole in memory."""

    def fields(self, shape: StepShape) -> dict[str, int]:
        """The int32 numbers that the backend wants on the device for a step of a shape: name to how many."""
        ...

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """Fill these numbers, padding included, on the host."""
        ...

    def metadata(
        self, step: StepInput, shape: StepShape, numbers: Mapping[str, Tensor], tables: Sequence[Tensor]
    ) -> Metadata:
        """Describe a step to the layers.

        numbers: what `write` wrote, on the device. tables: of each KV group the block table of every row, in this step
        or not, (rows, blocks) int32, on the device. A backend whose steps are recorded does not read `step`: only what
        is on the device differs from one replay to the next.
        """
        ...

    def allocate(
        self,
        configs: Sequence[AttentionConfig],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[LayerKV]:
        """The K and V caches of layers that share block numbers, in one of the dtypes that the backend declares."""
        ...

    def store(self, cache: LayerCache, k: Tensor, v: Tensor, metadata: Metadata) -> None:
        """Write the step's K and V to a layer's cache; see `Attention.forward`."""
        ...

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: Metadata,
    ) -> Tensor:
        """Norm, rotate and store; returns the queries (tokens, num_heads, head_dim). See `Attention.forward_merged`."""
        ...

    def attend(self, cache: LayerCache, q: Tensor, sinks: Tensor | None, metadata: Metadata) -> Tensor:
        """Attend to what is stored: (tokens, num_heads, head_dim) to (tokens, num_heads * v_head_dim).

        sinks: see `Attention.forward`.
        """
        ...
