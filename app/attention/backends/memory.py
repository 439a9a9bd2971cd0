"""Memory of KV caches."""

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

from ...errors import StartupError


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. On the CPU it takes memory only as it is written to, while torch.zeros would write all of it.

    Blocks are small and lie anywhere: with pages of 2 MiB, finding them misses the processor's table less often.
    Raises StartupError if the system does not promise so much memory.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # where it promises no more than it has
        raise StartupError(f"kv_cache_memory: no {size / 2**20:.0f} MiB for KV blocks: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
