"""KV blocks in the host's memory: the copies that steps begin with (`app.core.step.BlockCopies`).

On a GPU they have streams of their own. A step gathers what goes out into memory of the device's, which is then copied
while the step runs; what comes in is waited for by the device, not by Python, and is sent as soon as the step is
submitted, while the one before may still be running.
"""

import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention.backends.base import AttentionBackend
from ..core.step import BlockCopies
from ..errors import StartupError
from .kv_storage import LayerGroup

_TO_MEASURE = 32
"""Blocks that are copied there and back to see how long it takes."""


class _GroupOnHost:
    """The places of one KV group: what all of its layers keep in a block lies together."""

    def __init__(self, tensors: Sequence[Tensor], num_places: int) -> None:
        """tensors: K, V and scales of all layers, with blocks as their first dimension."""
        self._tensors = [tensor.view(torch.uint8) for tensor in tensors]
        self._sizes = [tensor[0].numel() for tensor in self._tensors]
        self.places = torch.empty(num_places, sum(self._sizes), dtype=torch.uint8)

    def gather(self, blocks: Tensor, rows: Tensor) -> None:
        """Copy what is in these blocks to rows (blocks, bytes), on their device."""
        for tensor, part in zip(self._tensors, rows.split(self._sizes, dim=1), strict=True):
            part.view(-1, *tensor.shape[1:]).copy_(tensor.index_select(0, blocks))

    def scatter(self, blocks: Tensor, rows: Tensor) -> None:
        """Overwrite these blocks with what was gathered before: (blocks, bytes), on their device."""
        for tensor, part in zip(self._tensors, rows.split(self._sizes, dim=1), strict=True):
            tensor.index_copy_(0, blocks, part.view(-1, *tensor.shape[1:]))


class _Here:
    """Copies of a group whose blocks are in the same memory."""

    def __init__(self, group: _GroupOnHost) -> None:
        self._group = group

    def copy(self, copies: BlockCopies) -> None:
        """Do all of them now."""
        places = self._group.places
        if copies.out:
            blocks, to = torch.tensor(copies.out).T
            rows = places.new_empty(len(blocks), places.shape[1])
            self._group.gather(blocks, rows)
            places.index_copy_(0, to, rows)
        if copies.into:
            at, blocks = torch.tensor(copies.into).T
            self._group.scatter(blocks, places.index_select(0, at))


class _Aside:
    """Copies of a group whose blocks are on a GPU. They go through memory of the device of a fixed size, in pieces.

    Steps run on the main stream. Two others send: `out` what was gathered, `back` what is to be scattered.
    """

    def __init__(self, group: _GroupOnHost, device: torch.device, most_rows: int) -> None:
        _pin(group.places)
        self._group = group
        self._device = device
        self._out, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)
        shape = (most_rows, group.places.shape[1])
        self._gathered, self._scattered = torch.empty(2, *shape, dtype=torch.uint8, device=device)
        self._sent: torch.cuda.Event | None = None
        """All that has gone out is in its places."""
        self._taken: torch.cuda.Event | None = None
        """All that has come back is in its blocks."""

    def copy(self, copies: BlockCopies) -> None:
        """Begin with them; the main stream goes on when all is there that the step reads."""
        main = torch.cuda.current_stream(self._device)
        written = {place for _, place in copies.out}
        earlier = self._sent
        for piece in _pieces(copies.out, len(self._gathered)):
            self._send(piece, main)
        # What comes in need not wait for what goes out in the same step, unless it is the same.
        needed = earlier if written.isdisjoint(place for place, _ in copies.into) else self._sent
        if needed is not None:
            self._back.wait_event(needed)
        for piece in _pieces(copies.into, len(self._scattered)):
            self._bring(piece, main)

    def _send(self, piece: Sequence[tuple[int, int]], main: torch.cuda.Stream) -> None:
        if self._sent is not None:  # then its memory is free
            main.wait_event(self._sent)
        rows = self._gathered[: len(piece)]
        self._group.gather(self._numbers([block for block, _ in piece]), rows)
        self._out.wait_stream(main)
        with torch.cuda.stream(self._out):
            for row, (_, place) in zip(rows, piece, strict=True):
                self._group.places[place].copy_(row, non_blocking=True)
        self._sent = self._out.record_event()

    def _bring(self, piece: Sequence[tuple[int, int]], main: torch.cuda.Stream) -> None:
        if self._taken is not None:
            self._back.wait_event(self._taken)
        rows = self._scattered[: len(piece)]
        with torch.cuda.stream(self._back):
            for row, (place, _) in zip(rows, piece, strict=True):
                row.copy_(self._group.places[place], non_blocking=True)
        main.wait_stream(self._back)
        self._group.scatter(self._numbers([block for _, block in piece]), rows)
        self._taken = main.record_event()

    def _numbers(self, numbers: list[int]) -> Tensor:
        """On the device, without a wait for it."""
        return torch.tensor(numbers, pin_memory=True).to(self._device, non_blocking=True)


class HostBlocks:
    """Does the copies, in the order of steps."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_places: Sequence[int],
        backend: AttentionBackend[Any],
        device: torch.device,
        most_rows: int,
    ) -> None:
        """The layers have their caches already. `most_rows`: blocks of each group that are on their way at once, in
        memory of a GPU; see `bytes_on_device`. Raises StartupError if the memory cannot be pinned.
        """
        self._device = device
        tensors = [
            [kv.transpose(0, backend.block_dim) for layer in group.layers for kv in layer.cache.kv if kv.numel()]
            for group in groups
        ]
        # The device may have fewer blocks than there are places for.
        of_groups = zip(tensors, num_places, strict=True)
        self._to_measure = [min(_TO_MEASURE, count, len(of_group[0])) for of_group, count in of_groups]
        on_host = [_GroupOnHost(of_group, count) for of_group, count in zip(tensors, num_places, strict=True)]
        is_on_gpu = device.type == "cuda"
        self._groups = [_Aside(group, device, most_rows) if is_on_gpu else _Here(group) for group in on_host]

    def copy(self, copies: Sequence[BlockCopies]) -> None:
        """Begin a step with these copies, one for each group."""
        for group, of_group in zip(self._groups, copies, strict=True):
            group.copy(of_group)

    def measure(self) -> float:
        """Seconds that a block of every group takes there and back. Whatever the blocks hold, they keep."""
        counts = self._to_measure
        there = [BlockCopies(out=[(number, number) for number in range(count)]) for count in counts]
        back = [BlockCopies(into=of_group.out) for of_group in there]
        seconds = []
        for _ in range(3):  # the first time touches memory that was never used
            self._synchronize()
            began = time.perf_counter()
            self.copy(there)
            self.copy(back)
            self._synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds) / max(counts)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def bytes_on_device(groups: Sequence[LayerGroup], most_rows: int, device: torch.device) -> int:
    """What copies take of a GPU's memory."""
    return 2 * most_rows * sum(group.block_bytes for group in groups) if device.type == "cuda" else 0


def _pieces(pairs: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (pairs[start : start + size] for start in range(0, len(pairs), size))


def _pin(memory: Tensor) -> None:
    """Let the GPU read and write memory of the host by itself, for as long as there is this tensor.

    torch's own pinned memory is a power of two bytes.
    """
    cuda = torch.cuda.cudart()
    result = int(cuda.cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if result != 0:
        raise StartupError(f"host_kv_cache: {memory.numel() / 2**30:.2f} GiB cannot be pinned: CUDA's error {result}")
    weakref.finalize(memory, cuda.cudaHostUnregister, memory.data_ptr())
