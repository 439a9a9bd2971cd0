"""A step's numbers on their way to the device: one buffer, one copy."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attention.backends.base import AttentionBackend
from ..attention.step import StepInput, StepShape
from ..core.request import NO_ADAPTER
from .batch import BlockChanges, Entries, InputBatch
from .model_state import ModelState
from .sampling.base import Sampling

_ALIGNMENT = 4
"""Numbers: 16 bytes."""
_TORCH: dict[Any, torch.dtype] = {np.int64: torch.int64, np.int32: torch.int32, np.float32: torch.float32}
_Part = tuple[str, Any, slice]
"""A field: its name, the kind of its numbers, and where in the buffer of int32 numbers it lies."""


class StepBuffer:
    """The buffer: numbers of sampling first, then those of the forward pass, then changes of block tables.

    There are two buffers on the host, used in turn: a step is prepared while the one before it may not have been
    copied yet. A GPU needs only one, since copies wait for the steps before them. A CPU needs no other than the host's.

    A step is `begin`, `write`, `send` and `sent`.
    """

    def __init__(
        self,
        batch: InputBatch,
        backend: AttentionBackend[Any],
        state: ModelState,
        sampling: Sampling,
        largest: StepShape,
        max_entries: int,
        device: torch.device,
        block_tables: list[Tensor] | None = None,
    ) -> None:
        """`block_tables`: those to use, on the device, which others keep up to date."""
        self._backend, self._state, self._sampling = backend, state, sampling
        self._body_parts = lru_cache(maxsize=1024)(self._lay_out_body)
        self._sampling_parts = lru_cache(maxsize=1024)(self._lay_out_sampling)
        self._host_body = lru_cache(maxsize=1024)(self._make_host_body)
        self._host_sampling = lru_cache(maxsize=1024)(self._make_host_sampling)
        self._body_at = _end(self._sampling_parts(max_entries))
        self._changes_at = _end(self._body_parts(largest))
        num_groups, num_rows, num_blocks = batch.block_tables.shape
        size = self._changes_at + (2 + num_groups) * num_rows * num_blocks
        if device.type == "cpu":
            self._device = torch.zeros(size, dtype=torch.int32)
            self._hosts = [self._device]
            self.block_tables = list(torch.from_numpy(batch.block_tables))
        else:
            self._hosts = [torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(2)]
            self._device = torch.zeros(size, dtype=torch.int32, device=device)
            self.block_tables = block_tables or list(
                torch.zeros(batch.block_tables.shape, dtype=torch.int32, device=device)
            )
        """Of each KV group, (rows, blocks), on the device."""
        self._flat_tables = [table.view(-1) for table in self.block_tables]
        self._turn = 0
        self._has_arrived: list[torch.cuda.Event | None] = [None] * len(self._hosts)
        """Events behind what was sent last from each buffer on the host."""

    def begin(self, changes: BlockChanges) -> None:
        """Take the next buffer, as soon as what it held has arrived; bring the device's block tables up to date."""
        self._turn = (self._turn + 1) % len(self._hosts)
        if (event := self._has_arrived[self._turn]) is not None:
            event.synchronize()
        count, start = len(changes.places), self._changes_at
        if not count or self._device.device.type == "cpu":
            return
        host, end = self._hosts[self._turn].numpy(), start + (2 + len(changes.values)) * count
        host[start : start + 2 * count].view(np.int64)[:] = changes.places
        host[start + 2 * count : end] = np.concatenate(changes.values)
        self._copy(start, end)
        places, *values = self._device[start:end].split([2 * count, *[count] * len(changes.values)])
        for table, blocks in zip(self._flat_tables, values, strict=True):
            table.index_copy_(0, places.view(torch.int64), blocks)

    def write(self, step: StepInput, shape: StepShape, entries: Entries, size: int) -> None:
        """Write a step's numbers, padded to a shape, and to `size` entries."""
        body = self._host_body(shape, self._turn)
        count = step.num_tokens
        body["input_ids"][:count], body["input_ids"][count:] = step.input_ids, 0
        body["sampled_by"][:count] = np.where(step.input_is_sampled, step.token_rows, -1)
        body["sampled_by"][count:] = -1
        body["positions"][:count], body["positions"][count:] = step.positions, 0
        if shape.is_adapted:
            body["adapters"][:] = NO_ADAPTER
            if step.adapters is not None:
                body["adapters"][:count] = step.adapters
        self._backend.write(step, body)
        self._state.write(step, body)
        sampling = self._host_sampling(size, self._turn)
        sampling["logits_at"][: len(entries)], sampling["logits_at"][len(entries) :] = entries.logits_at, 0
        self._sampling.write(entries, sampling)

    def send(self, shape: StepShape) -> None:
        """Copy what was written to the device."""
        if self._device.device.type == "cpu":
            return
        self._copy(0, _end(self._body_parts(shape)))

    def sent(self, event: torch.cuda.Event | None) -> None:
        """Tell of an event behind what was sent."""
        self._has_arrived[self._turn] = event

    def _copy(self, start: int, end: int) -> None:
        self._device[start:end].copy_(self._hosts[self._turn][start:end], non_blocking=True)

    def body(self, shape: StepShape) -> dict[str, Tensor]:
        """What a forward pass of a shape reads, on the device: input_ids, sampled_by, positions, the backend's, and
        the model state's.

        sampled_by (tokens,): the row that sampled the token last, or -1 for one that came with its request.
        adapters (tokens,): see `StepInput.adapters`; only if the shape is adapted.
        """
        return {name: self._device[part] for name, _, part in self._body_parts(shape)}

    def sampling(self, size: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What sampling of `size` entries reads, on the device: the tokens whose logits are wanted, and its own."""
        numbers = {name: self._device[part].view(_TORCH[kind]) for name, kind, part in self._sampling_parts(size)}
        return numbers.pop("logits_at"), numbers

    def _make_host_body(self, shape: StepShape, turn: int) -> dict[str, NDArray[np.int32]]:
        host = self._hosts[turn].numpy()
        return {name: host[part] for name, _, part in self._body_parts(shape)}

    def _make_host_sampling(self, size: int, turn: int) -> dict[str, NDArray[Any]]:
        host = self._hosts[turn].numpy()
        return {name: host[part].view(kind) for name, kind, part in self._sampling_parts(size)}

    def _lay_out_body(self, shape: StepShape) -> list[_Part]:
        of_tokens = ("input_ids", "sampled_by", "positions", *(("adapters",) if shape.is_adapted else ()))
        sizes = dict.fromkeys(of_tokens, shape.tokens) | self._backend.fields(shape) | self._state.fields(shape)
        return list(_laid_out(((name, np.int32, size) for name, size in sizes.items()), self._body_at))

    def _lay_out_sampling(self, size: int) -> list[_Part]:
        fields = {"logits_at": np.int32, **self._sampling.fields()}
        return list(_laid_out(((name, kind, size) for name, kind in fields.items()), 0))


def _laid_out(fields: Iterator[tuple[str, Any, int]], start: int) -> Iterator[_Part]:
    for name, kind, count in fields:
        end = start + count * (np.dtype(kind).itemsize // 4)
        yield name, kind, slice(start, end)
        start = _aligned(end)


def _end(parts: list[_Part]) -> int:
    return _aligned(parts[-1][2].stop)


def _aligned(place: int) -> int:
    """The next place that kernels can read from in large pieces: they are compiled anew for places that are not."""
    return -(-place // _ALIGNMENT) * _ALIGNMENT
