"""What a kind of model does beside tokens."""

from typing import Any, Protocol

from ..attention.step import StepInput, StepShape
from ..core.step import NewRequest


class ModelState(Protocol):
    """What a model keeps of each row beside K and V, and reads in each step beside token ids and positions.

    An encoder's output, the embeddings of images, a recurrent state, the slot of an adapter: each is a state of its
    own. Where steps are recorded, what differs between them lies in memory on the device that does not move.
    """

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        ...

    def inputs(self, step: StepInput, shape: StepShape) -> dict[str, Any]:
        """Arguments of the model's `forward` beside token ids and positions, for a step that is padded to a shape."""
        ...


class NoState:
    """Of a model that reads tokens alone."""

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""

    def inputs(self, step: StepInput, shape: StepShape) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        return {}
