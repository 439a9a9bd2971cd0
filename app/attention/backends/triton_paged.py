"""Paged attention on a GPU, by kernels that read the blocks in place and that a CUDA graph can hold.

Cache layout: (num_blocks, num_kv_heads, block_size, head_dim): what one program of a kernel reads is in one piece.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.attention.layer import Attention, AttentionConfig, HeadNorms
from app.kernels.gpu.fused import rotate_and_store, store
from app.kernels.gpu.paged_attention import chunks, decode

_QUERIES_OF_A_TILE = 64
"""Query heads times tokens that one program takes: measured on an H100, for prompts of 512 to 4096 tokens."""
_PROGRAMS = 256
"""Of a decode: a GPU has some 130 multiprocessors, and each runs several programs at once."""
_MOST_SPLITS = 16
_LONG = 8192
"""Tokens of a past that one program would be busy with for too long, while the others have ended."""


@dataclass(frozen=True)
class GpuMetadata:
    """The shape of one step: how many decodes and tiles there is room for, and where to find what they are.

    Decodes (one token each) are the first tokens. All numbers are int32 and may change under a captured graph.
    """

    slot_mapping: Tensor
    """(tokens,): where each token's K/V is written; block id * block size + offset, or -1 for padding."""
    block_tables: Tensor
    """(rows, blocks): the blocks of every row, in this step or not."""
    decode_rows: Tensor
    """(decodes,): row of each decode."""
    decode_lens: Tensor
    """(decodes,): tokens that each decode sees, its own included; 0 for padding."""
    tiles: Tensor
    """(tiles, 4): pieces of chunks of prompts; see `app.kernels.gpu.paged_attention.chunks`."""
    splits: int
    """Parts that each decode's past is cut into; see `TritonPagedBackend.splits`."""


class TritonPagedBackend:
    """For float32, bfloat16 and float16.

    How a request is computed depends on the number of decodes beside it, and on whether any of them is long.
    """

    def __init__(self, configs: list[AttentionConfig]) -> None:
        """`configs`: of all layers."""
        largest_group = max(config.num_heads // config.num_kv_heads for config in configs)
        self.tile_tokens = max(1, _QUERIES_OF_A_TILE // largest_group)
        """Most tokens of a tile."""
        self._num_kv_heads = min(config.num_kv_heads for config in configs)

    def splits(self, decodes: int, longest: int) -> int:
        """Parts that each past is cut into, a power of two, so that there is work for the whole GPU."""
        splits = _MOST_SPLITS if longest > _LONG else 1
        while splits < _MOST_SPLITS and decodes * self._num_kv_heads * splits < _PROGRAMS:
            splits *= 2
        return splits

    def allocate(
        self, config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.allocate`."""
        shape = (num_blocks, config.num_kv_heads, block_size)
        k_cache = torch.empty(*shape, config.head_dim, dtype=dtype, device=device)
        return k_cache, torch.empty(*shape, config.v_head_dim, dtype=dtype, device=device)

    def store(self, layer: Attention, k: Tensor, v: Tensor, metadata: GpuMetadata) -> None:
        """See `AttentionBackend.store`."""
        store(k, layer.k_cache, metadata.slot_mapping)
        store(v, layer.v_cache, metadata.slot_mapping)

    def rotate_and_store(
        self,
        layer: Attention,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: GpuMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        caches = layer.k_cache, layer.v_cache
        return rotate_and_store(qkv, layer.config.num_heads, rope, norms, *caches, metadata.slot_mapping)

    def attend(self, layer: Attention, q: Tensor, metadata: GpuMetadata) -> Tensor:
        """See `AttentionBackend.attend`."""
        config = layer.config
        q = q.contiguous()
        out = q.new_empty(q.shape[0], config.num_heads, config.v_head_dim)
        caches = layer.k_cache, layer.v_cache, metadata.block_tables
        options: dict[str, Any] = {"scale": config.scale, "window": config.window, "softcap": config.softcap}
        count = metadata.decode_rows.shape[0]
        if count:
            rows, lengths = metadata.decode_rows, metadata.decode_lens
            decode(q[:count], *caches, rows, lengths, out[:count], splits=metadata.splits, **options)
        if metadata.tiles.shape[0]:  # after the decodes, which write to the tokens that are none of theirs, too
            chunks(q, *caches, metadata.tiles, out, tile_tokens=self.tile_tokens, **options)
        return out.flatten(1)
