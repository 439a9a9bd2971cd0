"""A step's numbers on their way to the GPU: one buffer, one copy."""

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.kernels.gpu.sampling import SamplingTensors
from app.worker.gpu_sampling import PARAMETERS, RowSampling
from app.worker.input_batch import StepInput

Ints = NDArray[np.int32]
Numbers = TypeVar("Numbers")
NOBODY: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
"""Requests of a step of nothing but padding."""


class StepShape(NamedTuple):
    """How much a forward pass has room for. Graphs are captured for a few shapes, and steps are padded to them."""

    tokens: int
    decodes: int
    tiles: int
    splits: int
    """Parts that the past of each decode is cut into."""


@dataclass(frozen=True)
class BodyInputs(Generic[Numbers]):
    """What a forward pass of a shape reads; of numpy arrays on the host, of tensors on the device."""

    input_ids: Numbers
    """(tokens,); meaningless for tokens that their rows sampled last."""
    sampled_by: Numbers
    """(tokens,): the row that sampled the token last, or -1 for one that came with its request."""
    positions: Numbers
    """(tokens,)"""
    slot_mapping: Numbers
    """(tokens,)"""
    decode_rows: Numbers
    """(decodes,)"""
    decode_lens: Numbers
    """(decodes,)"""
    tiles: Numbers
    """(tiles * 4,)"""


_SAMPLING_FIELDS: dict[str, Any] = {
    "rows": np.int32,
    "positions": np.int32,
    "logits_at": np.int32,
    **{name: kind for name, (kind, _) in PARAMETERS.items()},
}
_ALIGNMENT = 4
"""Numbers: 16 bytes."""
_TORCH = {np.int64: torch.int64, np.int32: torch.int32, np.float32: torch.float32}


class GpuInputs:
    """The buffer: numbers of sampling first, then those of the forward pass, then changes of block tables.

    There are two buffers on the host, used in turn: a step is prepared while the one before it may not have been
    copied yet. The device needs only one, since copies wait for the steps before them.
    """

    def __init__(
        self, max_num_seqs: int, largest: StepShape, tile_tokens: int, max_updates: int, device: torch.device
    ) -> None:
        self._tile_tokens = tile_tokens
        self._body_at = _aligned(self._sampling_parts(max_num_seqs)[-1][2].stop)
        self.updates_at = self._body_parts(largest)[-1].stop
        size = self.updates_at + 2 * max_updates
        on_gpu = device.type == "cuda"
        self._hosts = [torch.zeros(size, dtype=torch.int32, pin_memory=on_gpu) for _ in range(2)]
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        self._turn = 0

    def next_step(self) -> None:
        """From now on, write to the other buffer."""
        self._turn = 1 - self._turn

    def send(self, shape: StepShape, num_updates: int) -> tuple[Tensor, Tensor]:
        """Copy what was written to the device; returns the places of the updates and their values there."""
        # Updates lie behind the largest shape: two pieces, unless there are none.
        self._copy(0, self._body_parts(shape)[-1].stop)
        at = self.updates_at
        self._copy(at, at + 2 * num_updates)
        return self._device[at : at + num_updates], self._device[at + num_updates : at + 2 * num_updates]

    def _copy(self, start: int, end: int) -> None:
        if start < end:
            self._device[start:end].copy_(self._hosts[self._turn][start:end], non_blocking=True)

    def host_updates(self, count: int) -> tuple[Ints, Ints]:
        """Where to write places and values of changes of block tables."""
        host: Ints = self._hosts[self._turn].numpy()
        at = self.updates_at
        return host[at : at + count], host[at + count : at + 2 * count]

    def write_body(self, batch: StepInput | None, shape: StepShape) -> None:
        """Write the numbers of a forward pass, or of one of nothing but padding."""
        to: BodyInputs[Ints] = BodyInputs(*(self._hosts[self._turn][part].numpy() for part in self._body_parts(shape)))
        count = len(batch.positions) if batch else 0
        decodes = batch.num_decodes if batch else 0
        to.input_ids[count:] = 0
        to.sampled_by[count:] = -1
        to.positions[count:] = 0
        to.slot_mapping[count:] = -1
        to.decode_rows[decodes:] = 0
        to.decode_lens[decodes:] = 0
        to.tiles[:] = 0
        if batch is None:
            return
        to.input_ids[:count] = batch.input_ids
        to.sampled_by[:count] = np.where(batch.input_is_sampled, batch.token_rows, -1)
        to.positions[:count] = batch.positions
        to.slot_mapping[:count] = batch.slot_mapping
        to.decode_rows[:decodes] = batch.rows[:decodes]
        to.decode_lens[:decodes] = batch.seq_lens[:decodes]
        self._write_tiles(batch, to.tiles.reshape(-1, 4))

    def _write_tiles(self, batch: StepInput, tiles: Ints) -> None:
        """Cut the chunks of prompts into tiles (tiles, 4); see `app.kernels.gpu.paged_attention.chunks`."""
        at = 0
        for index in range(batch.num_decodes, len(batch.rows)):
            start, end = int(batch.query_starts[index]), int(batch.query_starts[index + 1])
            first = np.arange(start, end, self._tile_tokens)
            part = tiles[at : at + len(first)]
            part[:, 0] = batch.rows[index]
            part[:, 1] = first
            part[:, 2] = np.minimum(end - first, self._tile_tokens)
            part[:, 3] = batch.positions[first]
            at += len(first)

    def device_body(self, shape: StepShape) -> BodyInputs[Tensor]:
        """Where the device finds the numbers of a forward pass."""
        return BodyInputs(*(self._device[part] for part in self._body_parts(shape)))

    def _body_parts(self, shape: StepShape) -> list[slice]:
        sizes = [shape.tokens] * 4 + [shape.decodes] * 2 + [4 * shape.tiles]
        parts, start = [], self._body_at
        for size in sizes:
            parts.append(slice(start, start + size))
            start = _aligned(start + size)
        return parts

    def write_sampling(
        self, batch: StepInput | None, samples: NDArray[np.int64], size: int, sampling: RowSampling
    ) -> None:
        """Write what sampling needs to know of the requests `samples` of a step, padded to `size`."""
        host = self._hosts[self._turn].numpy()
        to = {name: host[part].view(kind) for name, kind, part in self._sampling_parts(size)}
        count, rows = len(samples), NOBODY if batch is None else batch.rows[samples]
        sampling.write(rows, to)
        to["rows"][:count] = rows
        to["rows"][count:] = -1
        to["logits_at"][:] = 0
        to["positions"][:] = 0
        if batch is not None:
            to["logits_at"][:count] = batch.query_starts[1:][samples] - 1
            to["positions"][:count] = batch.seq_lens[samples] - 1

    def device_sampling(self, count: int) -> tuple[SamplingTensors, Tensor]:
        """Where the device finds the numbers of sampling; the second value: (count,) tokens whose logits are wanted."""
        tensors = {name: self._device[part].view(_TORCH[kind]) for name, kind, part in self._sampling_parts(count)}
        logits_at = tensors.pop("logits_at")
        return SamplingTensors(**tensors), logits_at

    @staticmethod
    def _sampling_parts(count: int) -> list[tuple[str, Any, slice]]:
        parts: list[tuple[str, Any, slice]] = []
        start = 0
        for name, kind in _SAMPLING_FIELDS.items():
            end = start + count * (np.dtype(kind).itemsize // 4)
            parts.append((name, kind, slice(start, end)))
            start = _aligned(end)
        return parts


def _aligned(place: int) -> int:
    """The next place that kernels can read from in large pieces: they are compiled anew for places that are not."""
    return -(-place // _ALIGNMENT) * _ALIGNMENT
