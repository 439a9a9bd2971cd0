"""Paged attention on the CPU: decodes by a kernel that reads the blocks in place, prefills by torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.cpu.fused import rotate_and_store, store
from ...kernels.cpu.kernel import constant
from ...kernels.cpu.paged_decode import paged_decode
from ..config import HeadNorms, LayerCache
from ..step import StepInput, StepShape
from .torch_paged import AttentionMetadata, TorchPagedBackend


@dataclass
class CpuMetadata(AttentionMetadata):
    """Decodes are described by numbers in the step's buffer, so that steps that only decode can be recorded.

    In these, the block tables, `query_starts` and `seq_lens` of the base class are empty.
    """

    all_tables: Sequence[Tensor] = ()
    """(rows, blocks) for each KV group: the blocks of every row, in this step or not."""
    decode_rows: Tensor = field(default_factory=lambda: torch.empty(0))
    """(decodes,): row of each decode."""
    decode_lens: Tensor = field(default_factory=lambda: torch.empty(0))
    """(decodes,): tokens that each decode sees, its own included."""


class CpuPagedBackend(TorchPagedBackend):
    """For float32 and bfloat16. How a request is computed never depends on its neighbours."""

    def __init__(self, num_groups: int) -> None:
        self._slots = [f"slots of group {group}" for group in range(num_groups)]

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `AttentionBackend.fields`."""
        sizes = {"decode_rows": shape.decodes, "decode_lens": shape.decodes}
        return dict.fromkeys(self._slots, shape.tokens) | sizes

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `AttentionBackend.write`. There is no padding."""
        for name, slots in zip(self._slots, step.slot_mappings, strict=True):
            to[name][:] = slots
        to["decode_rows"][:] = step.rows[: step.num_decodes]
        to["decode_lens"][:] = step.seq_lens[: step.num_decodes]

    def metadata(
        self, step: StepInput, shape: StepShape, numbers: Mapping[str, Tensor], tables: Sequence[Tensor]
    ) -> CpuMetadata:
        """See `AttentionBackend.metadata`."""
        if shape.chunks:
            base = super().metadata(step, shape, numbers, tables)
        else:
            base = AttentionMetadata([], [], [], [], shape.decodes, step.block_size)
        base.slot_mappings = [numbers[name] for name in self._slots]
        return CpuMetadata(
            **vars(base), all_tables=tables, decode_rows=numbers["decode_rows"], decode_lens=numbers["decode_lens"]
        )

    def store(self, cache: LayerCache, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> None:
        """See `AttentionBackend.store`."""
        slots = metadata.slot_mappings[cache.group]
        store(k, cache.k, slots)
        store(v, cache.v, slots)

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        slots = metadata.slot_mappings[cache.group]
        return rotate_and_store(qkv, cache.config.num_heads, rope, norms, cache.k, cache.v, slots)

    def decode(self, cache: LayerCache, q: Tensor, metadata: AttentionMetadata, out: Tensor) -> None:
        """See `TorchPagedBackend.decode`."""
        assert isinstance(metadata, CpuMetadata)
        config = cache.config
        group = config.num_heads // config.num_kv_heads
        run = paged_decode(group, config.head_dim, config.v_head_dim, metadata.block_size)
        caches, table = (constant(cache.k), constant(cache.v)), metadata.all_tables[cache.group]
        step = table, metadata.decode_rows, metadata.decode_lens
        run(
            len(q) * config.num_kv_heads, True, q.contiguous(), *caches, *step, config.window or 0,
            float(config.scale), float(config.softcap or 0.0), out,
        )  # fmt: skip
