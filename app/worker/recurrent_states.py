"""The states of recurrent layers: a slot for each row, and behind them one for each snapshot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attention.backends.memory import zeros
from ..attention.step import StepInput, StepShape
from ..core.step import NewRequest
from ..kernels.entries import CHUNK_FIELDS, ENTRY, chunks_of, most_chunks
from ..layers.recurrent import Recurrent, SlotStep, StatePart

_ENTRIES, _ENTRY_OF, _CHUNKS = "state entries", "state entry of", "state chunks"
"""See `SlotStep`."""


class RecurrentStates:
    """The memory of layers that compute a step in parts, or of such that compute it `at_once`. See `ModelState`.

    Steps run in order, so a row's slot is the next request's as soon as the row is.
    """

    def __init__(
        self, layers: Sequence[Recurrent], max_num_seqs: int, num_snapshots: int, device: torch.device
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self._device = device
        num_slots = max_num_seqs + num_snapshots
        kinds = [kind for layer in layers for kind in layer.kinds]
        self._memory = {
            kind: zeros((kinds.count(kind), num_slots, *kind.shape), kind.dtype, device) for kind in set(kinds)
        }
        """Of all states of a kind (states, slots, ...), so that a slot of all of them is filled at once."""
        rest = {kind: iter(memory) for kind, memory in self._memory.items()}
        for layer in layers:
            layer.memory = [next(rest[kind]) for kind in layer.kinds]

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""
        for memory in self._memory.values():
            if request.snapshot is None:
                memory[:, request.row].zero_()
            else:
                memory[:, request.row] = memory[:, self._max_num_seqs + request.snapshot]

    def fields(self, shape: StepShape) -> dict[str, int]:  # noqa: ARG002
        """See `ModelState.fields`."""
        return {}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        parts = [self._decodes(step)] if step.num_decodes else []
        for index in range(step.num_decodes, len(step.rows)):
            parts += self._chunk(step, index)
        return {"recurrent": parts}

    def _decodes(self, step: StepInput) -> StatePart:
        """All decodes. Their rows are sorted, because often these are one piece of memory then."""
        order = np.argsort(step.rows[: step.num_decodes])
        rows = step.rows[order]
        first, end = int(rows[0]), int(rows[-1]) + 1
        slots = slice(first, end) if end - first == len(rows) else torch.from_numpy(rows).to(self._device)
        copies = [(row, self._max_num_seqs + step.snapshots[row][1]) for row in rows.tolist() if row in step.snapshots]
        return StatePart(torch.from_numpy(order).to(self._device), slots, False, copies)

    def _chunk(self, step: StepInput, index: int) -> list[StatePart]:
        """A chunk of a prompt, in two pieces if a snapshot is to be made within."""
        row, start, end = int(step.rows[index]), int(step.query_starts[index]), int(step.query_starts[index + 1])
        slots = slice(row, row + 1)
        if row not in step.snapshots:
            return [StatePart(slice(start, end), slots, True)]
        cut, copy = self._copy(step, index)
        pieces = [StatePart(slice(start, cut), slots, True, [(row, copy)])]
        return pieces if cut == end else [*pieces, StatePart(slice(cut, end), slots, True)]

    def _copy(self, step: StepInput, index: int) -> tuple[int, int]:
        """Before which of the step's tokens a request's state is copied, and to which slot."""
        num_tokens, place = step.snapshots[int(step.rows[index])]
        start = int(step.query_starts[index])
        return start + num_tokens - int(step.positions[start]), self._max_num_seqs + place


class StatesInSlots(RecurrentStates):
    """The memory of layers that compute a step at once: which request is where are numbers on the device."""

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `ModelState.fields`."""
        chunks = most_chunks(shape.tokens, min(shape.chunks, self._max_num_seqs)) if shape.chunks else 0
        entries = min(shape.tokens, self._max_num_seqs)
        return {_ENTRIES: ENTRY * entries, _ENTRY_OF: shape.tokens, _CHUNKS: CHUNK_FIELDS * chunks}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""
        entries, count = to[_ENTRIES].reshape(-1, ENTRY), len(step.rows)
        entries[:] = 0, 0, 0, -1, -1
        entries[:count, 0] = step.rows
        entries[:count, 1], entries[:count, 2] = step.query_starts[:-1], step.query_starts[1:]
        for index in np.flatnonzero(np.isin(step.rows, list(step.snapshots))).tolist():
            entries[index, 3:] = self._copy(step, index)
        to[_ENTRY_OF][: step.num_tokens] = np.repeat(np.arange(count), np.diff(step.query_starts))
        to[_ENTRY_OF][step.num_tokens :] = -1
        chunks = np.array(chunks_of(entries[step.num_decodes : count].tolist())).ravel()
        to[_CHUNKS][: len(chunks)], to[_CHUNKS][len(chunks) :] = chunks, 0

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        entries, chunks = numbers[_ENTRIES].view(-1, ENTRY), numbers[_CHUNKS].view(-1, CHUNK_FIELDS)
        return {"recurrent": SlotStep(entries, numbers[_ENTRY_OF], chunks)}
