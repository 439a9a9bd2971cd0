"""Paged attention in plain torch operations: for the CPU, and the reference for every other backend.

Cache layout: (num_kv_heads, num_blocks, block_size, head_dim). With the heads outside, gathering the blocks of a batch
gives (num_kv_heads, requests, tokens, head_dim), which is what a batched matrix product takes: no transposition
of K and V, and one copy of them.
"""

import math
import mmap
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.attention.context import AttentionMetadata
from app.attention.layer import Attention, AttentionConfig


class _DecodeGroup(NamedTuple):
    """Decoding requests of similar length, padded to the longest."""

    rows: slice
    """Which of the step's requests, which is the same as which of its tokens."""
    blocks: Tensor
    """(requests * blocks,): the blocks to gather, request by request."""
    mask: Tensor
    """(requests, 1, tokens) float32: 0 where a token is seen, else -inf."""


class TorchPagedBackend:
    """Decodes in batches, grouped by length; prefill chunks request by request (there are few in a step)."""

    def allocate(
        self, config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.allocate`."""
        shape = (config.num_kv_heads, num_blocks, block_size)
        return _zeros((*shape, config.head_dim), dtype, device), _zeros((*shape, config.v_head_dim), dtype, device)

    def forward(self, layer: Attention, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
        """See `AttentionBackend.forward`."""
        for cache, new in ((layer.k_cache, k), (layer.v_cache, v)):
            cache.flatten(1, 2).index_copy_(1, metadata.slot_mapping, new.transpose(0, 1))
        config = layer.config
        out = q.new_empty(q.shape[0], config.num_heads, config.v_head_dim)
        for group in self._decode_groups(config, metadata):
            out[group.rows] = self._decode(layer, q[group.rows], group)
        for index in range(metadata.num_decodes, len(metadata.seq_lens)):
            chunk = slice(metadata.query_starts[index], metadata.query_starts[index + 1])
            out[chunk] = self._prefill(layer, q[chunk], index, metadata)
        return out.flatten(1)

    # ------------------------------------------------------------------ decode

    def _decode_groups(self, config: AttentionConfig, metadata: AttentionMetadata) -> list[_DecodeGroup]:
        """The step's decodes by length, for this layer's window. Made by the first such layer of a step."""
        key = ("decode", config.window)
        if key not in metadata.derived:
            first_blocks = [_first_block(length, config.window, metadata) for length in metadata.seq_lens]
            spans = [
                -(-length // metadata.block_size) - first
                for length, first in zip(metadata.seq_lens, first_blocks, strict=True)
            ]
            # Powers of two: a group is padded to at most twice what it needs. Requests come sorted by length.
            sizes = [span.bit_length() for span in spans[: metadata.num_decodes]]
            ends = [row for row in range(1, len(sizes) + 1) if row == len(sizes) or sizes[row] != sizes[row - 1]]
            groups = [slice(start, end) for start, end in pairwise([0, *ends])]
            metadata.derived[key] = [
                self._make_group(rows, max(spans[rows]), first_blocks[rows], config, metadata) for rows in groups
            ]
        result: list[_DecodeGroup] = metadata.derived[key]
        return result

    def _make_group(
        self, rows: slice, span: int, first_blocks: list[int], config: AttentionConfig, metadata: AttentionMetadata
    ) -> _DecodeGroup:
        device = metadata.block_tables.device
        first = torch.tensor(first_blocks, device=device)[:, None]
        lengths = torch.tensor(metadata.seq_lens[rows], device=device)[:, None]
        columns = (first + torch.arange(span, device=device)).clamp_(max=metadata.block_tables.shape[1] - 1)
        blocks = metadata.block_tables[rows].gather(1, columns).flatten()
        positions = first * metadata.block_size + torch.arange(span * metadata.block_size, device=device)
        seen = positions < lengths
        if config.window is not None:
            seen &= positions >= lengths - config.window
        mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))
        return _DecodeGroup(rows, blocks, mask[:, None, :])

    def _decode(self, layer: Attention, q: Tensor, group: _DecodeGroup) -> Tensor:
        """One query token per request: (requests, num_heads, head_dim) to (requests, num_heads, v_head_dim)."""
        config = layer.config
        heads, requests = config.num_kv_heads, q.shape[0]
        k = layer.k_cache.index_select(1, group.blocks).view(heads * requests, -1, config.head_dim)
        v = layer.v_cache.index_select(1, group.blocks).view(heads * requests, -1, config.v_head_dim)
        # Query heads that share a K/V head become rows of one product: (heads * requests, group, head_dim).
        q = q.reshape(requests, heads, -1, config.head_dim).transpose(0, 1).reshape(heads * requests, -1, config.head_dim)
        scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(config.scale)
        if config.softcap is not None:
            scores.div_(config.softcap).tanh_().mul_(config.softcap)
        scores = scores.view(heads, requests, -1, k.shape[1]).add_(group.mask).flatten(0, 1)
        out = torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v)
        return out.view(heads, requests, -1, config.v_head_dim).transpose(0, 1).flatten(1, 2)

    # ------------------------------------------------------------------ prefill

    def _prefill(self, layer: Attention, q: Tensor, index: int, metadata: AttentionMetadata) -> Tensor:
        """A chunk of one prompt: (tokens, num_heads, head_dim) to (tokens, num_heads, v_head_dim)."""
        config = layer.config
        first_key, blocks, mask = self._prefill_plan(config, index, q, metadata)
        num_keys = metadata.seq_lens[index] - first_key
        # (num_heads, keys, head_dim): each K/V head repeated for the query heads that share it.
        repeats = config.num_heads // config.num_kv_heads
        k = layer.k_cache.index_select(1, blocks).flatten(1, 2)[:, :num_keys].repeat_interleave(repeats, dim=0)
        v = layer.v_cache.index_select(1, blocks).flatten(1, 2)[:, :num_keys].repeat_interleave(repeats, dim=0)
        q = q.transpose(0, 1)
        if config.softcap is None:
            out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=config.scale)[0]
        else:
            scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(config.scale)
            scores.div_(config.softcap).tanh_().mul_(config.softcap).add_(mask)
            out = torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v)
        return out.transpose(0, 1)

    def _prefill_plan(
        self, config: AttentionConfig, index: int, q: Tensor, metadata: AttentionMetadata
    ) -> tuple[int, Tensor, Tensor]:
        """First key position, blocks to gather, and the mask (queries, keys) of a chunk, once for all layers."""
        key = ("prefill", config.window, index)
        if key not in metadata.derived:
            length, num_queries = metadata.seq_lens[index], q.shape[0]
            window = None if config.window is None else config.window + num_queries - 1
            first_block = _first_block(length, window, metadata)
            blocks = metadata.block_tables[index, first_block : -(-length // metadata.block_size)]
            first_key = first_block * metadata.block_size
            keys = torch.arange(first_key, length, device=q.device)
            queries = torch.arange(length - num_queries, length, device=q.device)[:, None]
            seen = keys <= queries
            if config.window is not None:
                seen &= keys > queries - config.window
            mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, float("-inf"))
            metadata.derived[key] = (first_key, blocks, mask)
        plan: tuple[int, Tensor, Tensor] = metadata.derived[key]
        return plan


def _first_block(length: int, window: int | None, metadata: AttentionMetadata) -> int:
    """Index of the first block that holds a token seen from a request's last `window` positions."""
    return 0 if window is None else max(0, length - window) // metadata.block_size


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. On the CPU it takes memory only as it is written to, while torch.zeros would write all of it.

    Blocks are small and lie anywhere: with pages of 2 MiB, finding them misses the processor's table less often.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
