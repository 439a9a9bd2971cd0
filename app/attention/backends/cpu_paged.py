"""Paged attention on the CPU: decodes by a kernel that reads the blocks in place, prefills by torch."""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ...kernels.cpu.fused import rotate_and_store
from ...kernels.cpu.numerics import array, constant
from ...kernels.cpu.paged_decode import paged_decode
from ..config import HeadNorms, LayerCache
from .torch_paged import AttentionMetadata, TorchPagedBackend


class CpuPagedBackend(TorchPagedBackend):
    """For float32 and bfloat16. How a request is computed never depends on its neighbours."""

    def rotate_and_store(
        self,
        cache: LayerCache,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        norms: HeadNorms | None,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """See `AttentionBackend.rotate_and_store`."""
        if rope is None or norms is not None:
            return super().rotate_and_store(cache, qkv, rope, norms, metadata)
        return rotate_and_store(
            qkv, cache.config.num_heads, *rope, cache.k, cache.v, metadata.slot_mappings[cache.group]
        )

    def decode(self, cache: LayerCache, q: Tensor, metadata: AttentionMetadata, out: Tensor) -> None:
        """See `TorchPagedBackend.decode`."""
        config = cache.config
        block_tables, firsts, lengths = self._ranges(cache, metadata)
        group = config.num_heads // config.num_kv_heads
        run = paged_decode(group, config.head_dim, config.v_head_dim, metadata.block_size)
        scale, softcap = np.float32(config.scale), np.float32(config.softcap or 0.0)
        caches = constant(cache.k), constant(cache.v)
        run(array(q.contiguous()), *caches, block_tables, firsts, lengths, scale, softcap, array(out))

    def _ranges(self, cache: LayerCache, metadata: AttentionMetadata) -> tuple[Any, Any, Any]:
        """Block tables, and the first position and the number of positions that each decode sees; once a step."""
        window = cache.config.window
        key = ("cpu decode", window)
        if key not in metadata.derived:
            # Kernels count the threads of the one that calls them: as many as torch's.
            most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            numba.set_num_threads(min(torch.get_num_threads(), most))
            lengths = np.array(metadata.seq_lens[: metadata.num_decodes])
            firsts = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
            metadata.derived[key] = metadata.block_tables[cache.group].numpy(), firsts, lengths
        result: tuple[Any, Any, Any] = metadata.derived[key]
        return result
