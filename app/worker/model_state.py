"""What a kind of model does beside tokens."""

from typing import Protocol

from torch import Tensor

from ..attention.step import StepShape
from ..core.step import NewRequest


class ModelState(Protocol):
    """What a model keeps of each row beside K and V, and reads in each step beside token ids and positions.

    An encoder's output, the embeddings of images, a recurrent state, the slot of an adapter: each is a state of its
    own. What has to differ between steps lies in memory on the device that does not move, for the sake of CUDA graphs.
    """

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        ...

    def inputs(self, shape: StepShape) -> dict[str, Tensor]:
        """Arguments of the model's `forward` beside token ids and positions, for a step of a shape."""
        ...


class NoState:
    """Of a model that reads tokens alone."""

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""

    def inputs(self, shape: StepShape) -> dict[str, Tensor]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        return {}
