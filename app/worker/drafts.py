"""Which guesses were right: a draft is accepted where it equals what is sampled at its position.

Sampling is a function of (seed, position, logits), and the logits behind right guesses are what they would have been
without guessing. So the text does not depend on drafts, and nothing has to be drawn again.
"""

from collections.abc import Sequence

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
