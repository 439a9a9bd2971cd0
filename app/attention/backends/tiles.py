"""Chunks of prompts, and rows with drafts, in pieces of a few tokens: kernels attend to a past with several queries."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..step import Ints, StepInput, StepShape

TILE = 5
"""Numbers that describe a tile."""


def count_decodes(rows: Ints, seq_lens: Ints, most: int) -> Ints:
    """Take up to `most` decodes of a row together, of which each sees one token more than the one before.

    rows (decodes,) and seq_lens (decodes,): of each, see `StepInput`. Returns (decodes,): at the first of those that
    are taken together their number, else 0.
    """
    goes_on = (rows[1:] == rows[:-1]) & (seq_lens[1:] == seq_lens[:-1] + 1)
    ends = np.flatnonzero(np.append(~goes_on, True)) + 1
    if len(ends) == len(rows):
        return np.ones_like(rows)
    counts = ends.copy()
    counts[1:] -= ends[:-1]
    left = np.repeat(ends, counts) - np.arange(len(rows))
    places = np.repeat(counts, counts) - left
    return np.where(places % most == 0, np.minimum(left, most), 0)


def most_tiles(shape: StepShape, tile_tokens: int, sees_ahead: bool) -> int:
    """Most tiles of a step's chunks. Each chunk may end with one that is not full, and each image begin one."""
    if not shape.chunks:
        return 0
    return shape.tokens if sees_ahead else shape.tokens // tile_tokens + shape.chunks


def write_tiles(step: StepInput, tile_tokens: int, tiles: NDArray[np.int32]) -> None:
    """Cut a step's chunks into tiles (tiles, 5): row, first token, number of tokens, position of the first token, and
    the end of what its tokens see, see `StepInput.ends`.

    Where tokens of images see ahead, a tile has tokens of one image, or of none. Tiles that are not needed have no
    tokens.
    """
    tiles[:] = 0
    at = 0
    for index in range(step.num_decodes, len(step.rows)):
        for start, end in _pieces(step, int(step.query_starts[index]), int(step.query_starts[index + 1])):
            first = np.arange(start, end, tile_tokens)
            part = tiles[at : at + len(first)]
            part[:, 0] = step.rows[index]
            part[:, 1] = first
            part[:, 2] = np.minimum(end - first, tile_tokens)
            part[:, 3] = step.positions[first]
            if step.ends is not None:
                part[:, 4] = step.ends[first]
            at += len(first)


def _pieces(step: StepInput, start: int, end: int) -> list[tuple[int, int]]:
    """A chunk, from its first token to before its last, cut where images begin and end."""
    if step.ends is None:
        return [(start, end)]
    borders = start + 1 + np.flatnonzero(np.diff(step.ends[start:end]))
    return list(pairwise([start, *borders.tolist(), end]))
