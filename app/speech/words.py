"""When each word of a text was spoken, as openai/whisper has it (whisper/timing.py and whisper/tokenizer.py)."""

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_WITHOUT_SPACES = frozenset(["zh", "ja", "th", "lo", "my", "yue"])
"""Languages whose words are not told apart: each character counts as one."""
_BEFORE = "\"'“¡¿([{-"
_BEHIND = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
_BROKEN = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[list[int]], str]


class Word(NamedTuple):
    """Some tokens of a text."""

    text: str
    first: int
    """Index of its first token, and ..."""
    last: int
    """... of the one behind its last."""


def token_places(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place in the sound where each token begins, from weights (tokens, places): what has to do with what.

    Dynamic time warping (Sakoe and Chiba, 1978): the way through the table that has the most weight on it.
    """
    num_tokens, num_places = weights.shape
    cost = np.full((num_tokens + 1, num_places + 1), np.inf, np.float32)
    step = np.zeros(cost.shape, np.int8)  # 0: from the token and the place before, 1: the token, 2: the place
    cost[0, 0] = 0
    for diagonal in range(2, num_tokens + num_places + 1):  # its cells depend on those before alone
        i = np.arange(max(1, diagonal - num_places), min(num_tokens, diagonal - 1) + 1)
        j = diagonal - i
        both, token, place = cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]
        chosen = np.where((both < token) & (both < place), 0, np.where((token < both) & (token < place), 1, 2))
        cost[i, j] = np.choose(chosen, (both, token, place)).astype(np.float64) - weights[i - 1, j - 1]
        step[i, j] = chosen
    step[0, :], step[:, 0] = 2, 1
    begins = np.zeros(num_tokens, np.int64)
    i, j = num_tokens, num_places
    while i > 0 or j > 0:
        if i:
            begins[i - 1] = j - 1  # the last one that is set is the first place
        kind = step[i, j]
        i, j = i - (kind != 2), j - (kind != 1)
    return begins


def words_of(tokens: Sequence[int], decode: Decode, language: str) -> list[Word]:
    """The words of a text, in which a space belongs to the word behind it, and punctuation to the word beside it.

    language: its code.
    """
    units = _characters(tokens, decode)
    return _with_punctuation(units if language in _WITHOUT_SPACES else _joined(units))


def _characters(tokens: Sequence[int], decode: Decode) -> list[Word]:
    """The fewest tokens in a row that make up whole characters."""
    whole, units = decode(list(tokens)), list[Word]()
    begin = place = 0
    for end in range(1, len(tokens) + 1):
        text = decode(list(tokens[begin:end]))
        at = place + text.find(_BROKEN)
        if _BROKEN not in text or whole[at : at + 1] == _BROKEN:
            units.append(Word(text, begin, end))
            begin, place = end, place + len(text)
    return units


def _joined(units: list[Word]) -> list[Word]:
    words: list[Word] = []
    for unit in units:
        if not words or unit.text.startswith(" ") or unit.text.strip() in string.punctuation:
            words.append(unit)
        else:
            words[-1] = Word(words[-1].text + unit.text, words[-1].first, unit.last)
    return words


def _with_punctuation(units: list[Word]) -> list[Word]:
    backwards: list[Word] = []
    for unit in reversed(units):
        if backwards and unit.text.startswith(" ") and unit.text.strip() in _BEFORE:
            backwards[-1] = Word(unit.text + backwards[-1].text, unit.first, backwards[-1].last)
        else:
            backwards.append(unit)
    words: list[Word] = []
    for unit in reversed(backwards):
        if words and not words[-1].text.endswith(" ") and unit.text in _BEHIND:
            words[-1] = Word(words[-1].text + unit.text, words[-1].first, unit.last)
        else:
            words.append(unit)
    return words
