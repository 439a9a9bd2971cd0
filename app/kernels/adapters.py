"""Adapters as kernels read them: what low-rank adapters of one linear layer add to its outputs."""

from typing import NamedTuple

from torch import Tensor


class Adapters(NamedTuple):
    """The matrices of all adapters of one layer (LoRA, Hu et al., 2021), each in a slot of memory that does not move.

    The outputs of a token whose adapter is in slot s become `out + (x @ a[s].T) @ b[s].T`. So do those of each part of
    the outputs, if it has rows of `a` of its own: what adapters know as several layers may be one layer here.
    """

    a: Tensor
    """(slots, parts * rank, inputs): a part's rows stand one behind the other. Zeros where an adapter has fewer."""
    b: Tensor
    """(slots, outputs, rank) on a GPU, (slots, rank, outputs) on a CPU; scaled. Each part is by its own rows of `a`."""
    ranks: Tensor
    """(slots,) int32: rows of `a` of a part that are not zeros; 0 for an adapter that has nothing for this layer."""
    ends: Tensor
    """(parts,) int64: where each part of the outputs ends."""
    sizes: tuple[int, ...]
    """Outputs of each part, of which there are three at most."""
    rank: int
    """Of the largest adapter that fits."""
    is_batch_invariant: bool
    """Whether what is added to a token may not depend on the number of tokens."""
