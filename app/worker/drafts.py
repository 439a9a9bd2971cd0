"""Which guesses were right: a draft is accepted where it equals what is sampled at its position.

Sampling is a function of (seed, position, logits), and the logits behind right guesses are what they would have been
without guessing. So the text does not depend on drafts, and nothing has to be drawn again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .batch import Entries


def accepted_tokens(tokens: Sequence[int], entries: Entries) -> list[list[int]]:
    """What each request gets of the tokens (entries,) that were sampled: those behind right guesses, and one more."""
    if entries.drafts is None:
        return [[token] for token in tokens]
    accepted = []
    for start, end in zip(entries.starts[:-1].tolist(), entries.starts[1:].tolist(), strict=True):
        last = start
        while last + 1 < end and tokens[last] == entries.drafts[last]:
            last += 1
        accepted.append(list(tokens[start : last + 1]))
    return accepted


def last_accepted(tokens: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    """The row of each request, and the last token that it gets, both on the device of the tokens (entries,)."""
    assert entries.drafts is not None
    starts = entries.starts[:-1]
    most = int(np.diff(entries.starts).max())
    at = np.minimum(starts[:, None] + np.arange(most), entries.starts[1:, None] - 1)  # (requests, most)
    places, guesses = (torch.from_numpy(array).to(tokens.device) for array in (at, entries.drafts[at]))
    # A request's last entry has no guess, and so ends the run of right ones.
    num_accepted = (tokens[places] == guesses).long().cumprod(dim=1).sum(dim=1)
    last = tokens[places[:, 0] + num_accepted]
    return torch.from_numpy(entries.rows[starts]).to(tokens.device), last.long()
