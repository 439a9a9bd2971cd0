"""Chunks of prompts in pieces of a few tokens, for kernels that attend to a past with several queries at once."""

import numpy as np
from numpy.typing import NDArray

from ..step import StepInput


def write_tiles(step: StepInput, tile_tokens: int, tiles: NDArray[np.int32]) -> None:
    """Cut a step's chunks into tiles (tiles, 4): row, first token, number of tokens, position of the first token.

    Tiles that are not needed have no tokens.
    """
    tiles[:] = 0
    at = 0
    for index in range(step.num_decodes, len(step.rows)):
        start, end = int(step.query_starts[index]), int(step.query_starts[index + 1])
        first = np.arange(start, end, tile_tokens)
        part = tiles[at : at + len(first)]
        part[:, 0] = step.rows[index]
        part[:, 1] = first
        part[:, 2] = np.minimum(end - first, tile_tokens)
        part[:, 3] = step.positions[first]
        at += len(first)
