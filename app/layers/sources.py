"""The seam between modules and the loader: a module says which tensors of a checkpoint fill it."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Target(NamedTuple):
    """Memory that a tensor of a checkpoint, or a part of that tensor, is copied to."""

    memory: Tensor
    rows: slice | None = None
    """The rows of the checkpoint's tensor to copy, with start and stop; None means all."""
    columns: slice | None = None
    """The same for its second dimension."""


@runtime_checkable
class Filled(Protocol):
    """A module whose parameters are not filled by tensors of the same names."""

    def sources(self, name: str) -> dict[str, Target]:
        """The names of the tensors that fill the module, which is called `name` in its parent.

        They are relative to the parent, because a checkpoint may have several modules in the place of this one. Names
        with the same memory are alternatives: a checkpoint needs one of them.
        """
        ...
