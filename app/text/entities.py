"""From the labels of tokens to the parts of a text that have one, as transformers' pipeline finds them ("simple")."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Entity(NamedTuple):
    """A part of a text."""

    label: str
    score: float
    """The mean of its tokens' probabilities."""
    start: int
    end: int
    """Characters: the first, and the one behind the last."""


class _Label(NamedTuple):
    begins: bool
    """Whether a token with it is the first one of an entity."""
    name: str


def entities(
    probs: NDArray[np.float32], labels: Sequence[str], places: Sequence[tuple[int, int] | None]
) -> list[Entity]:
    """Neighbouring tokens with the same label are one entity, unless a label begins with B-. Those of O are none.

    probs: (tokens, labels); places: of each token in the text, None for special tokens.
    """
    told = [_told(label) for label in labels]
    best = probs.argmax(axis=1)
    counts = np.array([place is not None for place in places], dtype=bool)
    order = counts.cumsum().tolist()  # neighbours have successive numbers, whatever special tokens are between them
    is_part = counts & np.array([label.name != "O" for label in told])[best]
    of_token = [told[index] for index in best.tolist()]
    groups: list[list[int]] = []
    for token in np.flatnonzero(is_part).tolist():
        begins, name = of_token[token]
        last = groups[-1][-1] if groups else None
        if last is not None and not begins and of_token[last].name == name and order[token] == order[last] + 1:
            groups[-1].append(token)
        else:
            groups.append([token])
    scores = probs.max(axis=1).tolist()
    spans = [place or (0, 0) for place in places]
    return [
        Entity(
            of_token[group[0]].name,
            math.fsum(scores[token] for token in group) / len(group),
            spans[group[0]][0],
            spans[group[-1]][1],
        )
        for group in groups
    ]


def _told(label: str) -> _Label:
    prefix, dash, rest = label.partition("-")
    has_prefix = bool(dash) and prefix in ("B", "I")
    return _Label(has_prefix and prefix == "B", rest if has_prefix else label)
