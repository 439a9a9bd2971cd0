"""Copies a checkpoint's tensors into modules, and makes each linear layer ready as soon as it is filled."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.free_memory import give_back
from ..layers.linear import Linear
from ..layers.sources import Target

log = logging.getLogger(__name__)

_READERS = 8
_PIECE_BYTES = 16 * 2**20
"""The size of what a reader copies at once."""
_AHEAD_BYTES = _READERS * _PIECE_BYTES
"""How much is read of layers that are not ready. What is rounded or packed as it comes then takes the memory of its
result and of little else."""
_GIVE_BACK_BYTES = 64 * 2**20
"""How much is filled before free memory is returned: until then the next layers take it, which costs less than new
memory."""
_LOG_SECONDS = 2.0
"""The time between two lines about the progress of loading."""

Open = Callable[[], AbstractContextManager[Any]]
"""Opens a file: what it gives has `keys`, `get_slice` and `get_tensor`, as `safetensors.safe_open` has them."""


class Piece(NamedTuple):
    """Some rows of a tensor in a file, which `open` opens, and the memory that they fill."""

    open: Open
    name: str
    rows: slice
    columns: slice | None
    memory: Tensor

    def load(self) -> None:
        """Copy them."""
        with self.open() as tensors:
            if self.memory.numel() == 1:
                part = tensors.get_tensor(self.name).view(self.memory.shape)
            else:
                whole = tensors.get_slice(self.name)
                part = whole[self.rows] if self.columns is None else whole[self.rows, self.columns]
        if self.memory.is_cuda:
            part = part.pin_memory()  # the GPU copies it while other pieces are read
        self.memory.copy_(part, non_blocking=True)


class Filling(NamedTuple):
    """A module, and what fills it, but for memory that it shares with one that is filled before."""

    module: nn.Module
    pieces: list[Piece]

    @property
    def num_bytes(self) -> int:
        """Of its memory."""
        return sum(piece.memory.nbytes for piece in self.pieces)

    def finish(self) -> None:
        """Make the filled module ready."""
        if isinstance(self.module, Linear):
            self.module.method.finish(self.module)


def pieces_of(open_file: Open, name: str, target: Target) -> list[Piece]:
    """A tensor in pieces of whole rows, each of at most _PIECE_BYTES if a row has no more."""
    memory = target.memory
    if memory.numel() == 1:
        return [Piece(open_file, name, slice(0), None, memory)]
    first = target.rows.start if target.rows else 0
    rows = max(1, _PIECE_BYTES * len(memory) // max(1, memory.nbytes))
    return [
        Piece(open_file, name, slice(first + start, first + start + len(part)), target.columns, part)
        for start, part in zip(range(0, len(memory), rows), memory.split(rows), strict=True)
    ]


def fill(fillings: deque[Filling]) -> None:
    """Fill modules in their order, and empty the queue. Memory that a module frees when it is ready must have no other
    reference.

    Several pieces are loaded at once: reading a file, copying, sending to a GPU and rounding can overlap.
    """
    logged_at, total = time.monotonic(), sum(filling.num_bytes for filling in fillings)
    begun: deque[tuple[Filling, list[Future[None]]]] = deque()
    done = ahead = unreturned = 0
    with ThreadPoolExecutor(_READERS) as pool:
        while fillings or begun:
            if fillings and (not begun or ahead + fillings[0].num_bytes <= _AHEAD_BYTES):
                filling = fillings.popleft()
                begun.append((filling, [pool.submit(piece.load) for piece in filling.pieces]))
                ahead += filling.num_bytes
                continue
            filling, loads = begun.popleft()
            for load in loads:
                load.result()
            size = filling.num_bytes
            ahead, done, unreturned = ahead - size, done + size, unreturned + size
            filling.pieces.clear()
            filling.finish()
            if unreturned >= _GIVE_BACK_BYTES:
                give_back()
                unreturned = 0
            if time.monotonic() - logged_at > _LOG_SECONDS:
                logged_at = time.monotonic()
                log.info("loading weights: %.1f of %.1f GiB", done / 2**30, total / 2**30)
    give_back()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
