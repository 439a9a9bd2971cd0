"""What a runner wants of sampling; the two that there are draw the same tokens from the same logits.

Sampling is stateless (docs/architecture.md#stateless-sampling). Tokens race, each with a head start by its
probability, and luck that is a hash of (seed, position, token). The winner is distributed as the probabilities are (the
Gumbel-max trick: Gumbel, 1954; Maddison et al., "A* Sampling", 2014). Whatever else is in the batch, and however often
a request was preempted, it draws the same.

To invert the cumulative distribution at one number would be simpler, but not stable: a rounding error in one
probability moves the bounds of all tokens behind it, and among thousands of improbable ones the number then hits
another. A race changes its winner only if two runners were as good as level.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...core.step import NewRequest
from ..batch import Entries


class Sampling(Protocol):
    """Turns the logits of a step's entries into tokens, by the sampling parameters of their rows.

    Penalties, masks and minimal lengths of an entry go by the drafts before it, too.
    """

    last_sampled: Tensor
    """(rows,) int64: the last token that each row got, which is its next input."""
    tokens: Tensor
    """(entries,): what was drawn in the last step, NOT_A_NUMBER where no token can be."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request, which may have generated tokens before (after a preemption)."""
        ...

    def fields(self) -> dict[str, type[np.generic]]:
        """The numbers that are wanted on the device for each entry: name to kind."""
        ...

    def write(self, entries: Entries, to: Mapping[str, NDArray[Any]]) -> None:
        """Fill these numbers, padding included, on the host."""
        ...

    def draws(self, entries: Entries) -> bool:
        """Whether any of the entries wants more than just the most probable token."""
        ...

    def mask(self, at: list[int], words: NDArray[np.int32]) -> None:
        """Let only some tokens pass in the next `sample`, for entries `at`.

        words (len(at), words): token t is allowed if bit t % 32 of number t // 32 is set.
        """
        ...

    def sample(self, logits: Tensor, entries: Entries, numbers: Mapping[str, Tensor], *, draws: bool) -> None:
        """Fill `tokens` and `last_sampled` from logits (n, vocab) float32, which may be changed in place.

        numbers: what `write` wrote, on the device, (n,) each. Where steps are recorded, `entries` is not read.
        """
        ...

    def ruled(self, entry: int) -> Tensor | None:
        """Logits (vocab,) that the last `sample` drew an entry's token from, if its rules want log probabilities of
        these to be reported."""
        ...
