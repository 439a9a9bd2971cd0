"""Paged attention on the CPU, by kernels that read the blocks in place.

Cache layout: K (num_kv_heads, num_blocks, head_dim, block_size), so that one vector holds a dimension of a block's
keys; V (num_kv_heads, num_blocks, block_size, v_head_dim); scales (num_kv_heads, num_blocks, block_size).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.cpu.fused import rotate_and_store, store
from ...kernels.cpu.kernel import constant
from ...kernels.cpu.paged_attention import paged_attention
from ...kernels.kv import ROUNDED_DTYPES, SCALE_DTYPE, LayerKV, bytes_of_token
from ..config import AttentionConfig, HeadNorms, LayerCache
from ..step import StepInput, StepShape
from .memory import zeros
from .tiles import TILE, count_decodes, most_tiles, write_tiles

_LINE = 64
"""Bytes of a line of the cache, of which a block has whole ones."""
_NO_SINKS = torch.empty(0)
_NO_BIAS = torch.empty(0, 0)
_AT_ONCE = 8
"""Query heads that the kernel computes together."""


@dataclass(frozen=True)
class CpuMetadata:
    """Where to find what a step is: all numbers are int32, and may change when a recorded step is replayed."""

    slot_mappings: list[Tensor]
    """(tokens,) for each KV group: where each token's K/V is written, block id * block size + offset."""
    block_tables: Sequence[Tensor]
    """(rows, blocks) for each KV group: the blocks of every row, in this step or not."""
    tiles: Tensor
    """(tiles, 5): decodes, those of a row with drafts together, and pieces of chunks of prompts; see
    `app.kernels.cpu.paged_attention`."""


class CpuPagedBackend:
    """For float32 and bfloat16, with K and V in the same or in int8.

    How a token is computed depends neither on its neighbours nor on how it is reached: in a chunk of a prompt or in a
    decode.
    """

    long_past = 2**62
    block_dim = 1

    def __init__(self, configs: Sequence[AttentionConfig], num_groups: int) -> None:
        """`configs`: of all layers."""
        largest_group = max((config.num_heads // config.num_kv_heads for config in configs), default=1)
        self._tile_tokens = max(2, _AT_ONCE // math.gcd(_AT_ONCE, largest_group))
        """Most tokens of a tile, whose query heads can be divided into groups of that size."""
        self._sees_ahead = any(config.sees_ahead for config in configs)
        self._slots = [f"slots of group {group}" for group in range(num_groups)]

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `AttentionBackend.fields`."""
        tiles = shape.decodes + most_tiles(shape, self._tile_tokens, self._sees_ahead)
        return dict.fromkeys(self._slots, shape.tokens) | {"tiles": TILE * tiles}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `AttentionBackend.write`. There is no padding but that of tiles."""
        for name, slots in zip(self._slots, step.slot_mappings, strict=True):
            to[name][:] = slots
        tiles, decodes = to["tiles"].reshape(-1, TILE), step.num_decodes
        tiles[:decodes, 0] = step.rows[:decodes]
        tiles[:decodes, 1] = np.arange(decodes)
        # Half of what a tile may have, so that a row with drafts is work for several threads.
        tiles[:decodes, 2] = count_decodes(step.rows[:decodes], step.seq_lens[:decodes], self._tile_tokens // 2)
        tiles[:decodes, 3] = step.positions[:decodes]
        tiles[:decodes, 4] = 0
        write_tiles(step, self._tile_tokens, tiles[decodes:])

    def metadata(
        self,
        step: StepInput,  # noqa: ARG002
        shape: StepShape,  # noqa: ARG002
        numbers: Mapping[str, Tensor],
        tables: Sequence[Tensor],
    ) -> CpuMetadata:
        """See `AttentionBackend.metadata`."""
        return CpuMetadata([numbers[name] for name in self._slots], tables, numbers["tiles"].view(-1, TILE))

    def allocate(
        self,
        configs: Sequence[AttentionConfig],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[LayerKV]:
        """See `AttentionBackend.allocate`. What all layers keep in a block lies together: then the blocks of a few
        requests are in a few large pages, while each head of each layer would have pages of its own.
        """
        size = sum(bytes_of_token(c.num_kv_heads, c.head_dim, c.v_head_dim, dtype) for c in configs) * block_size
        memory = zeros((num_blocks, -(-size // _LINE) * _LINE), torch.uint8, device)
        begin = 0

        def take(of: torch.dtype, heads: int, *shape: int) -> Tensor:
            """(heads, num_blocks, *shape)"""
            nonlocal begin
            end = begin + heads * math.prod(shape) * of.itemsize
            begin, taken = end, memory[:, begin:end].view(of)
            return taken.view(num_blocks, heads, *shape).transpose(0, 1)

        def take_scales(heads: int) -> Tensor:
            if dtype in ROUNDED_DTYPES:
                return take(SCALE_DTYPE, heads, block_size)
            return torch.empty(heads, 0, block_size)

        # Scales come first, since their numbers are the largest: so all are at whole multiples of their sizes.
        scales = [(take_scales(config.num_kv_heads), take_scales(config.num_kv_heads)) for config in configs]
        return [
            LayerKV(
                take(dtype, config.num_kv_heads, config.head_dim, block_size),
                take(dtype, config.num_kv_heads, block_size, config.v_head_dim),
                *of_layer,
            )
            for config, of_layer in zip(configs, scales, strict=True)
        ]

    def store(self, cache: LayerCache, k: Tensor, v: Tensor, metadata: CpuMetadata) -> None:
        """See `AttentionBackend.store`."""
        store(k, v, cache.kv, metadata.slot_mappings[cache.group])

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: CpuMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        slots = metadata.slot_mappings[cache.group]
        return rotate_and_store(qkv, cache.config.num_heads, rope, norms, cache.kv, slots)

    def attend(self, cache: LayerCache, q: Tensor, sinks: Tensor | None, metadata: CpuMetadata) -> Tensor:
        """See `AttentionBackend.attend`."""
        config = cache.config
        group, block_size = config.num_heads // config.num_kv_heads, cache.kv.k.shape[3]
        out = torch.empty(len(q), config.num_heads, config.v_head_dim, dtype=q.dtype)
        run = paged_attention(group, config.head_dim, config.v_head_dim, block_size)
        run(
            len(metadata.tiles) * config.num_kv_heads, True, q, *map(constant, cache.kv),
            metadata.block_tables[cache.group], metadata.tiles, config.window or 0, config.chunked, float(config.scale),
            float(config.softcap or 0.0), _NO_SINKS if sinks is None else sinks,
            _NO_BIAS if cache.bias is None else cache.bias, out,
        )  # fmt: skip
        return out.flatten(1)
