"""Inputs that a model reads together, in one batch with padding."""

import sys
from collections.abc import Iterator

_MOST_PADDING = 4
"""Inputs of a batch are at most a quarter smaller than its largest, or ..."""
_SMALL = 4
"""... this many tokens."""


def batches(order: list[int], sizes: list[int], most: int = sys.maxsize, pads: bool = True) -> Iterator[list[int]]:
    """Cut inputs, which are sorted by size, where the next would make too much padding, or more than `most` in all.

    `pads`: whether there may be padding.
    """
    start = 0
    for at in range(1, len(order) + 1):
        if (
            at == len(order)
            or sizes[at] - sizes[start] > pads * max(_SMALL, sizes[at] // _MOST_PADDING)
            or sizes[at] * (at + 1 - start) > most
        ):
            yield order[start:at]
            start = at
