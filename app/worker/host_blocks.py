"""KV blocks in the host's memory: the copies that steps begin with (`app.core.step.BlockCopies`).

On a GPU they have a stream of their own. A step gathers what goes out into one piece of the device's memory, which is
then copied while the step runs; what comes in is waited for by the device, not by Python, and was sent as soon as the
step was submitted, while the one before may still have been running.
"""

import time
from collections.abc import Sequence
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

    def __init__(self, tensors: Sequence[Tensor], num_places: int, pinned: bool) -> None:
        """tensors: K, V and scales of all layers, with blocks as their first dimension."""
        self._tensors = [tensor.view(torch.uint8) for tensor in tensors]
        self._sizes = [tensor[0].numel() for tensor in self._tensors]
        self.places = torch.empty(num_places, sum(self._sizes), dtype=torch.uint8)
        if pinned:
            _pin(self.places)

    def gather(self, blocks: Tensor) -> Tensor:
        """What is in these blocks: (blocks, bytes), on their device."""
        return torch.cat([tensor.index_select(0, blocks).flatten(1) for tensor in self._tensors], dim=1)

    def scatter(self, blocks: Tensor, rows: Tensor) -> None:
        """Overwrite these blocks with what was gathered before: (blocks, bytes), on their device."""
        for tensor, part in zip(self._tensors, rows.split(self._sizes, dim=1), strict=True):
            tensor.index_copy_(0, blocks, part.view(-1, *tensor.shape[1:]))


class HostBlocks:
    """Does the copies, in the order of steps."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_places: Sequence[int],
        backend: AttentionBackend[Any],
        device: torch.device,
    ) -> None:
        """The layers have their caches already. Raises StartupError if the memory cannot be pinned."""
        self._device = device
        is_on_gpu = device.type == "cuda"
        tensors = [
            [kv.transpose(0, backend.block_dim) for layer in group.layers for kv in layer.cache.kv if kv.numel()]
            for group in groups
        ]
        self._groups = [
            _GroupOnHost(of_group, count, is_on_gpu) for of_group, count in zip(tensors, num_places, strict=True)
        ]
        self._stream = torch.cuda.Stream(device) if is_on_gpu else None

    def copy(self, copies: Sequence[BlockCopies]) -> None:
        """Begin a step with these copies, one for each group."""
        for group, of_group in zip(self._groups, copies, strict=True):
            if self._stream is None:
                self._copy_here(group, of_group)
            else:
                self._copy_aside(group, of_group, self._stream)

    @staticmethod
    def _copy_here(group: _GroupOnHost, copies: BlockCopies) -> None:
        if copies.out:
            blocks, places = torch.tensor(copies.out).T
            group.places.index_copy_(0, places, group.gather(blocks))
        if copies.into:
            places, blocks = torch.tensor(copies.into).T
            group.scatter(blocks, group.places.index_select(0, places))

    def _copy_aside(self, group: _GroupOnHost, copies: BlockCopies, aside: torch.cuda.Stream) -> None:
        main = torch.cuda.current_stream(self._device)
        gathered = group.gather(self._numbers([block for block, _ in copies.out])) if copies.out else None
        # What comes in need not wait for what goes out, unless it is the same.
        if gathered is not None and not {place for _, place in copies.out}.isdisjoint(p for p, _ in copies.into):
            self._send(group, gathered, copies, main, aside)
            gathered = None
        if copies.into:
            with torch.cuda.stream(aside):
                rows = torch.empty(len(copies.into), group.places.shape[1], dtype=torch.uint8, device=self._device)
                for row, (place, _) in zip(rows, copies.into, strict=True):
                    row.copy_(group.places[place], non_blocking=True)
            main.wait_stream(aside)
            rows.record_stream(main)
            group.scatter(self._numbers([block for _, block in copies.into]), rows)
        if gathered is not None:
            self._send(group, gathered, copies, main, aside)

    @staticmethod
    def _send(
        group: _GroupOnHost, gathered: Tensor, copies: BlockCopies, main: torch.cuda.Stream, aside: torch.cuda.Stream
    ) -> None:
        aside.wait_stream(main)
        gathered.record_stream(aside)
        with torch.cuda.stream(aside):
            for row, (_, place) in zip(gathered, copies.out, strict=True):
                group.places[place].copy_(row, non_blocking=True)

    def _numbers(self, numbers: list[int]) -> Tensor:
        """On the device, without a wait for it."""
        return torch.tensor(numbers, pin_memory=True).to(self._device, non_blocking=True)

    def measure(self) -> float:
        """Seconds that a block of every group takes there and back. Whatever the blocks hold, they keep."""
        counts = [min(_TO_MEASURE, len(group.places)) for group in self._groups]
        there = [BlockCopies(out=[(number, number) for number in range(count)]) for count in counts]
        back = [BlockCopies(into=of_group.out) for of_group in there]
        seconds = []
        for _ in range(2):  # the first time touches memory that was never used
            self._synchronize()
            began = time.perf_counter()
            self.copy(there)
            self.copy(back)
            self._synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds) / max(counts)

    def _synchronize(self) -> None:
        if self._stream is not None:
            torch.cuda.synchronize(self._device)


def _pin(memory: Tensor) -> None:
    """Let the GPU read and write memory of the host by itself. torch's own pinned memory is a power of two bytes."""
    result = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
    if int(result) != 0:
        raise StartupError(f"host_kv_cache: {memory.numel() / 2**30:.2f} GiB cannot be pinned: {result}")
