"""What a kind of model does beside tokens."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..attention.step import StepInput, StepShape
from ..core.step import NewRequest


class ModelState(Protocol):
    """What a model keeps of each row beside K and V, and reads in each step beside token ids and positions.

    An encoder's output, the embeddings of images, a recurrent state: each is a state of its own. Where steps are
    recorded, what differs between them lies in memory on the device that does not move, and `inputs` does not read
    `step`.
    """

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        ...

    def fields(self, shape: StepShape) -> dict[str, int]:
        """The int32 numbers that the model wants on the device for a step of a shape: name to how many."""
        ...

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """Fill these numbers, padding included, on the host."""
        ...

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the model's `forward` beside token ids and positions.

        numbers: what `write` wrote, on the device.
        """
        ...


class Several:
    """The states of a model that has several kinds, such as one that reads images with recurrent layers."""

    def __init__(self, *states: ModelState) -> None:
        self.states = states

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""
        for state in self.states:
            state.add(request)

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `ModelState.fields`."""
        return {name: count for state in self.states for name, count in state.fields(shape).items()}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""
        for state in self.states:
            state.write(step, to)

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ModelState.inputs`."""
        return {name: given for state in self.states for name, given in state.inputs(step, numbers).items()}


class NoState:
    """Of a model that reads tokens alone."""

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""

    def fields(self, shape: StepShape) -> dict[str, int]:  # noqa: ARG002
        """See `ModelState.fields`."""
        return {}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        return {}
