"""Chunks of prompts, and rows with drafts, in pieces of a few tokens: kernels attend to a past with several queries."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..step import Ints, StepInput


def count_decodes(rows: Ints, most: int) -> Ints:
    """Take up to `most` successive decodes of a row together.

    rows (decodes,): of each. Returns (decodes,): at the first of those that are taken together their number, else 0.
    """
    ends = np.flatnonzero(np.append(rows[1:] != rows[:-1], True)) + 1
    if len(ends) == len(rows):
        return np.ones_like(rows)
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    left = np.repeat(ends, lengths) - np.arange(len(rows))
    places = np.repeat(lengths, lengths) - left
    return np.where(places % most == 0, np.minimum(left, most), 0)


def write_tiles(step: StepInput, tile_tokens: int, tiles: NDArray[np.int32]) -> None:
    """Cut a step's chunks into tiles (tiles, 4): row, first token, number of tokens, position of the first token.

    Where tokens of images see ahead, a tile has tokens of one image, or of none, and a fifth number: see
    `StepInput.ends`. Tiles that are not needed have no tokens.
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
