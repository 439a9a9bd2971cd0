"""Paged attention on a GPU, by kernels that read the blocks in place and that a CUDA graph can hold.

Cache layout: (num_blocks, num_kv_heads, block_size, head_dim): what one program of a kernel reads is in one piece.
Scales lie alike, without the last dimension. Of values that are the beginnings of their keys nothing is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.gpu import invariant_attention, paged_attention
from ...kernels.gpu.fused import rotate_and_store, store
from ...kernels.gpu.paged_attention import DECODE_QUERIES
from ...kernels.kv import ROUNDED_DTYPES, SCALE_DTYPE, LayerKV
from ..config import AttentionConfig, HeadNorms, LayerCache
from ..step import StepInput, StepShape
from .tiles import TILE, count_decodes, most_tiles, write_tiles

_QUERIES_OF_A_TILE = 64
"""Query heads times tokens that one program takes: measured on an H100, for prompts of 512 to 4096 tokens."""
_PROGRAMS = 256
"""Of a decode: a GPU has some 130 multiprocessors, and each runs several programs at once."""
_MOST_SPLITS = 16


@dataclass(frozen=True)
class GpuMetadata:
    """The shape of one step: how many decodes and tiles there is room for, and where to find what they are.

    Decodes (one token each) are the first tokens. All numbers are int32 and may change under a captured graph.
    """

    slot_mappings: list[Tensor]
    """(tokens,) for each KV group: where each token's K/V is written, or -1 for padding."""
    block_tables: Sequence[Tensor]
    """(rows, blocks) for each KV group: the blocks of every row, in this step or not."""
    decode_rows: Tensor
    """(decodes,): row of each decode."""
    decode_lens: Tensor
    """(decodes,): tokens that each decode sees, its own included; 0 for padding."""
    decode_counts: Tensor
    """(decodes,): how many are taken together; see `app.kernels.gpu.paged_attention.decode`."""
    tiles: Tensor
    """(tiles, 5): pieces of chunks of prompts; see `app.kernels.gpu.paged_attention.chunks`."""
    splits: int
    """Parts that each decode's past is cut into; see `TritonPagedBackend._splits`."""


class TritonPagedBackend:
    """For float32, bfloat16 and float16, with K and V in the same or in FP8.

    How a request is computed depends on the number of decodes beside it, and on whether any of them is long, unless the
    backend is batch invariant.
    """

    long_past = 8192
    """One program would be busy with a longer past for too long, while the others have ended."""
    block_dim = 0

    def __init__(self, configs: list[AttentionConfig], num_groups: int, batch_invariant: bool) -> None:
        """`configs`: of all layers."""
        self._kernels = invariant_attention if batch_invariant else paged_attention
        largest_group = max((config.num_heads // config.num_kv_heads for config in configs), default=1)
        self._tile_tokens = max(1, _QUERIES_OF_A_TILE // largest_group)
        """Most tokens of a tile."""
        self._decodes_at_once = max(1, DECODE_QUERIES // largest_group)
        """Most decodes of a row that are taken together."""
        self._sees_ahead = any(config.sees_ahead for config in configs)
        self._num_kv_heads = min((config.num_kv_heads for config in configs), default=1)
        self._slots = [f"slots of group {group}" for group in range(num_groups)]

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `AttentionBackend.fields`."""
        tiles = most_tiles(shape, self._tile_tokens, self._sees_ahead)
        sizes = dict.fromkeys(("decode_rows", "decode_lens", "decode_counts"), shape.decodes) | {"tiles": TILE * tiles}
        return dict.fromkeys(self._slots, shape.tokens) | sizes

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `AttentionBackend.write`."""
        count, decodes = step.num_tokens, step.num_decodes
        for name, slots in zip(self._slots, step.slot_mappings, strict=True):
            to[name][:count] = slots
            to[name][count:] = -1
        to["decode_rows"][:decodes] = step.rows[:decodes]
        to["decode_rows"][decodes:] = 0
        to["decode_lens"][:decodes] = step.seq_lens[:decodes]
        to["decode_lens"][decodes:] = 0
        to["decode_counts"][:decodes] = count_decodes(
            step.rows[:decodes], step.seq_lens[:decodes], self._decodes_at_once
        )
        to["decode_counts"][decodes:] = 1
        write_tiles(step, self._tile_tokens, to["tiles"].reshape(-1, TILE))

    def metadata(
        self,
        step: StepInput,  # noqa: ARG002
        shape: StepShape,
        numbers: Mapping[str, Tensor],
        tables: Sequence[Tensor],
    ) -> GpuMetadata:
        """See `AttentionBackend.metadata`."""
        return GpuMetadata(
            slot_mappings=[numbers[name] for name in self._slots],
            block_tables=tables,
            decode_rows=numbers["decode_rows"],
            decode_lens=numbers["decode_lens"],
            decode_counts=numbers["decode_counts"],
            tiles=numbers["tiles"].view(-1, TILE),
            splits=self._splits(shape),
        )

    def _splits(self, shape: StepShape) -> int:
        """Parts that each past is cut into, a power of two, so that there is work for the whole GPU."""
        splits = _MOST_SPLITS if shape.is_long else 1
        while splits < _MOST_SPLITS and shape.decodes * self._num_kv_heads * splits < _PROGRAMS:
            splits *= 2
        return splits

    def allocate(
        self,
        configs: Sequence[AttentionConfig],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[LayerKV]:
        """See `AttentionBackend.allocate`."""
        return [_allocate(config, num_blocks, block_size, dtype, device) for config in configs]

    def store(self, cache: LayerCache, k: Tensor, v: Tensor, metadata: GpuMetadata) -> None:
        """See `AttentionBackend.store`."""
        slots = metadata.slot_mappings[cache.group]
        store(k, cache.kv.k, cache.kv.k_scales, slots)
        if not cache.config.values_in_keys:
            store(v, cache.kv.v, cache.kv.v_scales, slots)

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: GpuMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        slots = metadata.slot_mappings[cache.group]
        return rotate_and_store(qkv, cache.config.num_heads, rope, norms, cache.kv, slots)

    def attend(self, cache: LayerCache, q: Tensor, sinks: Tensor | None, metadata: GpuMetadata) -> Tensor:
        """See `AttentionBackend.attend`."""
        config = cache.config
        q = q.contiguous()
        out = q.new_empty(q.shape[0], config.num_heads, config.v_head_dim)
        caches = cache.kv, metadata.block_tables[cache.group]
        options: dict[str, Any] = {
            "scale": config.scale, "window": config.window, "chunked": config.chunked, "softcap": config.softcap,
            "sinks": sinks, "bias": cache.bias,
        }  # fmt: skip
        count = metadata.decode_rows.shape[0]
        if count:
            decodes = metadata.decode_rows, metadata.decode_lens, metadata.decode_counts
            self._kernels.decode(q[:count], *caches, *decodes, out[:count], splits=metadata.splits, **options)
        if metadata.tiles.shape[0]:  # after the decodes, because their padding also writes to tokens of chunks
            self._kernels.chunks(q, *caches, metadata.tiles, out, tile_tokens=self._tile_tokens, **options)
        return out.flatten(1)


def _allocate(
    config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> LayerKV:
    shape = (num_blocks, config.num_kv_heads, block_size)
    of_values = (*shape[:2], 0) if config.values_in_keys else shape
    of_scales, of_value_scales = (shape, of_values) if dtype in ROUNDED_DTYPES else ((0,), (0,))
    return LayerKV(
        torch.empty(*shape, config.head_dim, dtype=dtype, device=device),
        torch.empty(*of_values, config.v_head_dim, dtype=dtype, device=device),
        torch.empty(of_scales, dtype=SCALE_DTYPE, device=device),
        torch.empty(of_value_scales, dtype=SCALE_DTYPE, device=device),
    )
