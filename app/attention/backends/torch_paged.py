"""Paged attention in plain torch operations: for the CPU, and the reference for every other backend.

Cache layout: (num_kv_heads, num_blocks, block_size, head_dim). With the heads outside, gathering the blocks of a batch
gives (num_kv_heads, requests, tokens, head_dim), which is what torch's attention takes: one copy of K and V, and no
transposition.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.kv import LayerKV
from ...kernels.ops import rms_norm, rotate
from ..config import AttentionConfig, HeadNorms, LayerCache
from ..step import StepInput, StepShape
from .memory import zeros


@dataclass
class AttentionMetadata:
    """The shape of one step. Requests that decode (one token each) come first, by length, then chunks of prompts."""

    slot_mappings: list[Tensor]
    """(tokens,) int64 for each KV group: where each token's K/V is written, block id * block size + offset."""
    block_tables: list[Tensor]
    """(requests, blocks) int64 for each KV group: each request's blocks, padded with anything."""
    query_starts: list[int]
    """Offset of each request's first token among the step's tokens, and the number of tokens."""
    seq_lens: list[int]
    """Tokens of each request whose K/V is in the cache once this step's is written."""
    num_decodes: int
    block_size: int
    ends: Tensor | None = None
    """See `StepInput.ends`."""
    derived: dict[Any, Any] = field(default_factory=dict)
    """What a backend has derived from the above, so that it does so once a step and not in every layer."""


class _DecodeGroup(NamedTuple):
    """Decoding requests of similar length, padded to the longest."""

    rows: slice
    """Which of the step's requests, which is the same as which of its tokens."""
    blocks: Tensor
    """(requests * blocks,): the blocks to gather, request by request."""
    mask: Tensor
    """(1, requests, 1, tokens): 0 where a token is seen, else -inf."""
    distances: Tensor
    """(requests, tokens): how far before the query each token is."""
    unseen: Tensor
    """(1, requests, tokens, 1): what other requests left there may be anything, NaN included."""


class TorchPagedBackend:
    """Decodes in batches, grouped by length; prefill chunks request by request (there are few in a step)."""

    long_past = sys.maxsize
    block_dim = 1

    def fields(self, shape: StepShape) -> dict[str, int]:  # noqa: ARG002
        """See `AttentionBackend.fields`: steps are described on the host."""
        return {}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `AttentionBackend.write`."""

    def metadata(
        self,
        step: StepInput,
        shape: StepShape,  # noqa: ARG002
        numbers: Mapping[str, Tensor],  # noqa: ARG002
        tables: Sequence[Tensor],
    ) -> AttentionMetadata:
        """See `AttentionBackend.metadata`."""
        num_blocks = -(-int(step.seq_lens.max()) // step.block_size)
        return AttentionMetadata(
            slot_mappings=[
                torch.from_numpy(slots).to(table.device)
                for slots, table in zip(step.slot_mappings, tables, strict=True)
            ],
            block_tables=[table[torch.from_numpy(step.rows).to(table.device), :num_blocks].long() for table in tables],
            query_starts=step.query_starts.tolist(),
            seq_lens=step.seq_lens.tolist(),
            num_decodes=step.num_decodes,
            block_size=step.block_size,
            ends=None if step.ends is None else torch.from_numpy(step.ends).to(tables[0].device),
        )

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

    def store(self, cache: LayerCache, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> None:
        """See `AttentionBackend.store`."""
        for memory, new in ((cache.kv.k, k), (cache.kv.v, v)):
            memory.flatten(1, 2).index_copy_(1, metadata.slot_mappings[cache.group], new.transpose(0, 1))

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        sizes = cache.config.num_heads, cache.config.num_kv_heads
        qk, v = qkv.split((sum(sizes), sizes[1]), dim=1)
        if norms is not None:
            weights, offset, eps = norms[:2], norms.offset, norms.eps
            parts = zip(qk.split(sizes, dim=1), weights, strict=True)
            qk = torch.cat([rms_norm(part, weight, offset, eps) for part, weight in parts], dim=1)
        q, k = (qk if rope is None else rotate(qk, *rope)).split(sizes, dim=1)
        self.store(cache, k, v, metadata)
        return q

    def attend(self, cache: LayerCache, q: Tensor, sinks: Tensor | None, metadata: AttentionMetadata) -> Tensor:
        """See `AttentionBackend.attend`."""
        config = cache.config
        out = q.new_empty(q.shape[0], config.num_heads, config.v_head_dim)
        if metadata.num_decodes:
            self.decode(cache, q[: metadata.num_decodes], sinks, metadata, out[: metadata.num_decodes])
        for index in range(metadata.num_decodes, len(metadata.seq_lens)):
            chunk = slice(metadata.query_starts[index], metadata.query_starts[index + 1])
            out[chunk] = self._prefill(cache, q[chunk], sinks, index, metadata)
        return out.flatten(1)

    # ------------------------------------------------------------------ decode

    def decode(
        self, cache: LayerCache, q: Tensor, sinks: Tensor | None, metadata: AttentionMetadata, out: Tensor
    ) -> None:
        """Fill `out` (requests, num_heads, v_head_dim) for the step's decodes, q (requests, num_heads, head_dim)."""
        for group in self._decode_groups(cache, metadata):
            out[group.rows] = self._decode(cache, q[group.rows], sinks, group)

    def _decode_groups(self, cache: LayerCache, metadata: AttentionMetadata) -> list[_DecodeGroup]:
        """The step's decodes by length, for this layer's window. Made by the first such layer of a step."""
        config = cache.config
        key = ("decode", config.window, config.chunked)
        if key not in metadata.derived:
            first_blocks = [_first_block(length - 1, config, metadata) for length in metadata.seq_lens]
            spans = [
                -(-length // metadata.block_size) - first
                for length, first in zip(metadata.seq_lens, first_blocks, strict=True)
            ]
            # Powers of two: a group is padded to at most twice what it needs. Requests come sorted by length.
            sizes = [span.bit_length() for span in spans[: metadata.num_decodes]]
            ends = [row for row in range(1, len(sizes) + 1) if row == len(sizes) or sizes[row] != sizes[row - 1]]
            groups = [slice(start, end) for start, end in pairwise([0, *ends])]
            metadata.derived[key] = [
                self._make_group(rows, max(spans[rows]), first_blocks[rows], cache, metadata) for rows in groups
            ]
        result: list[_DecodeGroup] = metadata.derived[key]
        return result

    def _make_group(
        self, rows: slice, span: int, first_blocks: list[int], cache: LayerCache, metadata: AttentionMetadata
    ) -> _DecodeGroup:
        tables = metadata.block_tables[cache.group]
        device = tables.device
        first = torch.tensor(first_blocks, device=device)[:, None]
        lengths = torch.tensor(metadata.seq_lens[rows], device=device)[:, None]
        columns = (first + torch.arange(span, device=device)).clamp_(max=tables.shape[1] - 1)
        blocks = tables[rows].gather(1, columns).flatten()
        positions = first * metadata.block_size + torch.arange(span * metadata.block_size, device=device)
        seen = positions < lengths
        if cache.config.window is not None:
            seen &= positions >= cache.config.first_seen(lengths - 1)
        mask = _mask(seen, cache.kv.k.dtype)[None, :, None]
        return _DecodeGroup(rows, blocks, mask, lengths - 1 - positions, ~seen[None, :, :, None])

    def _decode(self, cache: LayerCache, q: Tensor, sinks: Tensor | None, group: _DecodeGroup) -> Tensor:
        """One query token per request: (requests, num_heads, head_dim) to (requests, num_heads, v_head_dim)."""
        config = cache.config
        heads, requests = config.num_kv_heads, q.shape[0]
        k = cache.kv.k.index_select(1, group.blocks).view(heads, requests, -1, config.head_dim)
        v = cache.kv.v.index_select(1, group.blocks).view(heads, requests, -1, config.v_head_dim)
        k, v = k.masked_fill_(group.unseen, 0), v.masked_fill_(group.unseen, 0)
        # Query heads that share a K/V head are as good as queries of it: (heads, requests, group, head_dim).
        q = q.unflatten(1, (heads, -1)).transpose(0, 1)
        sinks = None if sinks is None else sinks.view(heads, 1, -1, 1)
        mask = group.mask
        if (bias := cache.bias_at(group.distances)) is not None:
            mask = mask + bias.unflatten(0, (heads, -1)).transpose(1, 2).to(mask.dtype)
        return _attend(q, k, v, mask, sinks, config).transpose(0, 1).flatten(1, 2)

    # ------------------------------------------------------------------ prefill

    def _prefill(
        self, cache: LayerCache, q: Tensor, sinks: Tensor | None, index: int, metadata: AttentionMetadata
    ) -> Tensor:
        """A chunk of one prompt: (tokens, num_heads, head_dim) to (tokens, num_heads, v_head_dim)."""
        config = cache.config
        first_key, blocks, mask, distances = self._prefill_plan(cache, index, q, metadata)
        num_keys = metadata.seq_lens[index] - first_key
        # (num_kv_heads, group, keys, head_dim): the query heads that share a K/V head see the same memory.
        group = config.num_heads // config.num_kv_heads
        k, v = (
            memory.index_select(1, blocks).flatten(1, 2)[:, None, :num_keys].expand(-1, group, -1, -1)
            for memory in cache.kv[:2]
        )
        q = q.unflatten(1, (config.num_kv_heads, group)).permute(1, 2, 0, 3)
        sinks = None if sinks is None else sinks.view(config.num_kv_heads, group, 1, 1)
        if distances is not None and (bias := cache.bias_at(distances)) is not None:
            mask = mask + bias.unflatten(0, (config.num_kv_heads, group)).to(mask.dtype)
        return _attend(q, k, v, mask, sinks, config).permute(2, 0, 1, 3).flatten(1, 2)

    def _prefill_plan(
        self, cache: LayerCache, index: int, q: Tensor, metadata: AttentionMetadata
    ) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """First key position, blocks to gather, the mask (queries, keys) of a chunk, and where there is a bias the
        distances (queries, keys), once for all layers."""
        config = cache.config
        key = ("prefill", config.window, config.chunked, index, cache.bias is None)
        if key not in metadata.derived:
            length, num_queries = metadata.seq_lens[index], q.shape[0]
            first_block = _first_block(length - num_queries, config, metadata)
            blocks = metadata.block_tables[cache.group][index, first_block : -(-length // metadata.block_size)]
            first_key = first_block * metadata.block_size
            keys = torch.arange(first_key, length, device=q.device)
            queries = torch.arange(length - num_queries, length, device=q.device)[:, None]
            seen = keys <= queries
            if metadata.ends is not None:
                seen |= keys < metadata.ends[metadata.query_starts[index] : metadata.query_starts[index + 1], None]
            if config.window is not None:
                seen &= keys >= config.first_seen(queries)
            distances = None if cache.bias is None else (queries - keys).int()
            metadata.derived[key] = (first_key, blocks, _mask(seen, q.dtype), distances)
        plan: tuple[int, Tensor, Tensor, Tensor | None] = metadata.derived[key]
        return plan


def _first_block(position: int, config: AttentionConfig, metadata: AttentionMetadata) -> int:
    """Index of the first block that holds what a token at a position sees."""
    return max(0, config.first_seen(position)) // metadata.block_size


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None, config: AttentionConfig) -> Tensor:
    """Attention of q (a, b, queries, head_dim) to k and v (a, b, keys, ...); `mask` is added to the scores.

    sinks: of each query, so that (a, b, queries, 1) is a larger shape.
    """
    if config.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=config.scale)
    scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(config.scale)
    if config.softcap is not None:
        scores.div_(config.softcap).tanh_().mul_(config.softcap)
    scores.add_(mask)
    if sinks is not None:
        scores = torch.cat((scores, sinks.float().expand(*scores.shape[:-1], 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[-2]]
    return torch.matmul(weights.to(v.dtype), v)


def _mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is seen, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _allocate(
    config: AttentionConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> LayerKV:
    shape = (config.num_kv_heads, num_blocks, block_size)
    k, v = (zeros((*shape, size), dtype, device) for size in (config.head_dim, config.v_head_dim))
    return LayerKV(k, v, *torch.empty(2, 0))
