"""The states of recurrent layers: a slot for each row, and behind them one for each snapshot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attention.backends.memory import zeros
from ..attention.step import StepInput, StepShape
from ..core.step import NewRequest
from ..layers.recurrent import Recurrent, StatePart


class RecurrentStates:
    """See `ModelState`. Steps run in order, so a row's slot is the next request's as soon as the row is."""

    def __init__(
        self, layers: Sequence[Recurrent], max_num_seqs: int, num_snapshots: int, device: torch.device
    ) -> None:
        self._first_snapshot = max_num_seqs
        self._device = device
        self._memory: list[Tensor] = []
        for layer in layers:
            layer.memory = [
                zeros((max_num_seqs + num_snapshots, *kind.shape), kind.dtype, device) for kind in layer.kinds
            ]
            self._memory += layer.memory

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""
        for memory in self._memory:
            if request.snapshot is None:
                memory[request.row].zero_()
            else:
                memory[request.row] = memory[self._first_snapshot + request.snapshot]

    def inputs(self, step: StepInput, shape: StepShape) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        parts = [self._decodes(step)] if step.num_decodes else []
        for index in range(step.num_decodes, len(step.rows)):
            parts += self._chunk(step, index)
        return {"parts": parts}

    def _decodes(self, step: StepInput) -> StatePart:
        """All decodes. Their rows are sorted, because often these are one piece of memory then."""
        order = np.argsort(step.rows[: step.num_decodes])
        rows = step.rows[order]
        first, end = int(rows[0]), int(rows[-1]) + 1
        slots = slice(first, end) if end - first == len(rows) else torch.from_numpy(rows).to(self._device)
        copies = [
            (row, self._first_snapshot + step.snapshots[row][1]) for row in rows.tolist() if row in step.snapshots
        ]
        return StatePart(torch.from_numpy(order).to(self._device), slots, False, copies)

    def _chunk(self, step: StepInput, index: int) -> list[StatePart]:
        """A chunk of a prompt, in two pieces if a snapshot is to be made within."""
        row, start, end = int(step.rows[index]), int(step.query_starts[index]), int(step.query_starts[index + 1])
        slots = slice(row, row + 1)
        if row not in step.snapshots:
            return [StatePart(slice(start, end), slots, True)]
        num_tokens, place = step.snapshots[row]
        cut = start + num_tokens - int(step.positions[start])
        pieces = [StatePart(slice(start, cut), slots, True, [(row, self._first_snapshot + place)])]
        return pieces if cut == end else [*pieces, StatePart(slice(cut, end), slots, True)]
