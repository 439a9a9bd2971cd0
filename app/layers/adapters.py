"""Linear layers with low-rank adapters: each token of a step may have one, and those at its side others or none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ..kernels.adapters import Adapters
from ..kernels.ops import adapted_linear, add_adapters
from ..kernels.rows import Rows
from .linear import Linear, LinearMethod
from .methods.plain import PLAIN, Plain

MOST_PARTS = 3
"""Kernels know no layers of more parts."""

_slots: ContextVar[Tensor | None] = ContextVar("adapters", default=None)


@contextmanager
def adapters_of(slots: Tensor | None) -> Iterator[None]:
    """Make the adapters of a step's tokens known to the layers that run inside this block, in this thread.

    slots (tokens,) int32: the place of each token's adapter, -1 if it has none; None if no token has one.
    """
    token = _slots.set(slots)
    try:
        yield
    finally:
        _slots.reset(token)


@contextmanager
def adapters_of_some(tokens: Tensor | slice) -> Iterator[None]:
    """The same for some of the tokens that are known outside of this block."""
    slots = _slots.get()
    with adapters_of(None if slots is None else slots[tokens]):
        yield


class Adapted(Plain):
    """The method of one layer: the one that it had, and what adapters add to the outputs of their tokens."""

    def __init__(self, layer: Linear, sizes: Sequence[int], num_slots: int, rank: int, like: Tensor) -> None:
        """`sizes`: how many outputs each part has, with matrices of its own. `like`: dtype and device of matrices."""
        self._method: LinearMethod = layer.method
        self.is_batch_invariant = self._method.is_batch_invariant
        assert len(sizes) <= MOST_PARTS
        outputs, device = layer.out_features, like.device
        self.adapters = Adapters(
            a=like.new_zeros(num_slots, len(sizes) * rank, layer.in_features),
            b=like.new_zeros(num_slots, *((outputs, rank) if like.is_cuda else (rank, outputs))),
            ranks=torch.zeros(num_slots, dtype=torch.int32, device=device),
            ends=torch.tensor(sizes, device=device).cumsum(0),
            sizes=tuple(sizes),
            rank=rank,
            is_batch_invariant=self.is_batch_invariant,
        )

    def fill(self, slot: int, parts: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Put an adapter into a slot that no token of a step in flight has.

        parts: of those that it has, a (its rank, inputs) and the scaled b (outputs of the part, its rank). The other
        parts stay as the layer computes them.
        """
        own = self.adapters
        a, b = torch.zeros_like(own.a[slot], device="cpu"), torch.zeros(sum(own.sizes), own.rank, dtype=own.b.dtype)
        first = 0
        for part, size in enumerate(own.sizes):
            if part in parts:
                of_a, of_b = parts[part]
                a[part * own.rank : part * own.rank + len(of_a)] = of_a
                b[first : first + size, : len(of_a)] = of_b
            first += size
        own.a[slot].copy_(a)
        own.b[slot].copy_(b if own.b.is_cuda else b.T)
        own.ranks[slot] = max((len(of_a) for of_a, _ in parts.values()), default=0)

    def group_for(self, layer: Linear, like: Tensor) -> int | None:
        """See `LinearMethod`. Adapters take activations as they are."""
        return self._method.group_for(layer, like) if _slots.get() is None else None

    def apply(self, layer: Linear, x: Tensor | Rows) -> Tensor:
        """See `LinearMethod`."""
        slots = _slots.get()
        if slots is None:
            return self._method.apply(layer, x)  # type: ignore[arg-type]
        assert not isinstance(x, Rows), "`group_for` asks for none in a step with adapters"
        tokens = x.reshape(-1, layer.in_features)
        if self._method is PLAIN:  # whose product can add what adapters add, without a further pass over its outputs
            out = adapted_linear(tokens, layer.weight, layer.bias, self.adapters, slots)
        else:
            out = self._method.apply(layer, tokens)
            add_adapters(tokens, self.adapters, slots, out)
        return out.view(*x.shape[:-1], layer.out_features)
