"""From the labels of tokens to the parts of a text that have one, as transformers' pipeline finds them ("simple")."""

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


class _Token(NamedTuple):
    begins: bool
    label: str
    score: float
    place: tuple[int, int]


def entities(
    probs: NDArray[np.float32], labels: Sequence[str], places: Sequence[tuple[int, int] | None]
) -> list[Entity]:
    """Neighbouring tokens with the same label are one entity, unless a label begins with B-. Those of O are none.

    probs: (tokens, labels); places: of each token in the text, None for special tokens.
    """
    groups: list[list[_Token]] = []
    for of_token, place in zip(probs, places, strict=True):
        if place is None:
            continue
        best = int(of_token.argmax())
        prefix, dash, rest = labels[best].partition("-")
        has_prefix = bool(dash) and prefix in ("B", "I")
        token = _Token(has_prefix and prefix == "B", rest if has_prefix else labels[best], float(of_token[best]), place)
        if groups and not token.begins and groups[-1][-1].label == token.label:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        Entity(group[0].label, float(np.mean([token.score for token in group])), group[0].place[0], group[-1].place[1])
        for group in groups
        if group[0].label != "O"
    ]
