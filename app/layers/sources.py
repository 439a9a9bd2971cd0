"""What fills a module: each module says it itself, and so a loader need not know of any."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Target(NamedTuple):
    """Memory that a tensor of a checkpoint, or a part of one, is copied to."""

    memory: Tensor
    rows: slice | None = None
    """Of the checkpoint's tensor, with start and stop; None is all of them."""
    columns: slice | None = None
    """Likewise, of its second dimension."""


@runtime_checkable
class Filled(Protocol):
    """A module that is not filled by tensors with the names of its parameters."""

    def sources(self, name: str) -> dict[str, Target]:
        """Names of tensors, and where each goes. Two names with the same memory are alternatives.

        `name` is what the module is called in its parent; names of tensors are relative to that parent, too: a module
        may be filled by what checkpoints have as several modules beside it.
        """
        ...
