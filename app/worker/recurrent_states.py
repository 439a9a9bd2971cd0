"""The states of recurrent layers: a slot for each row."""

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

    def __init__(self, layers: Sequence[Recurrent], num_slots: int, device: torch.device) -> None:
        self._device = device
        self._memory: list[Tensor] = []
        for layer in layers:
            layer.memory = [zeros((num_slots, *kind.shape), kind.dtype, device) for kind in layer.kinds]
            self._memory += layer.memory

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""
        for memory in self._memory:
            memory[request.row].zero_()

    def inputs(self, step: StepInput, shape: StepShape) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`. The decodes' rows are sorted: often, they are one piece of memory then."""
        parts = []
        if count := step.num_decodes:
            order = np.argsort(step.rows[:count])
            rows = step.rows[:count][order]
            first, end = int(rows[0]), int(rows[-1]) + 1
            slots = slice(first, end) if end - first == count else torch.from_numpy(rows).to(self._device)
            parts.append(StatePart(torch.from_numpy(order).to(self._device), slots, False))
        for index in range(count, len(step.rows)):
            row = int(step.rows[index])
            tokens = slice(int(step.query_starts[index]), int(step.query_starts[index + 1]))
            parts.append(StatePart(tokens, slice(row, row + 1), True))
        return {"parts": parts}
