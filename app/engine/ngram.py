"""Drafts from a request's own tokens: where its last tokens have stood before, what followed may follow again.

Answers that quote, edit or extend their prompt repeat long pieces of it, and so do lists, tables and code. See "Prompt
lookup decoding" (Saxena, 2023) and "SuffixDecoding" (Oliaro et al., 2024), which also looks for the longest match.
"""

from array import array

from ..core.request import Request
from .drafts import NO_GUESS, Chance, Guess

_AT_ONCE = 512
"""Most tokens of a prompt that are taken in before a step: a tenth of a millisecond."""
_PLACES = 8
"""Most earlier places that are compared."""
_LONGEST = 16
"""Tokens of a match that count: with more of them, what follows is not more certain."""
_SHORTEST = 2
_LEAST_HASHES = 4096
_FORGET = 0.98
"""Weight that a guess keeps in the chances with each further one."""
_FORGET_OWN = 0.8
"""The same for a request's own guesses."""
_TRUST = 3.0
"""How many guesses of a request's own weigh as much as those of all requests."""


class NgramProposer:
    """See `Proposer`. It also guesses while nothing is drafted: so chances are known, and cost nothing."""

    def __init__(self) -> None:
        # By length of the match; at first as if some guesses had been right, the more so the longer the match.
        shares = [0.3 + 0.6 * length / _LONGEST for length in range(_LONGEST + 1)]
        self._chances = [Chance(_FORGET, 4 * share, 4) for share in shares]

    def propose(self, request: Request, most: int) -> Guess:
        """See `Proposer`."""
        text, token_ids = request.of_proposer, request.token_ids
        if not isinstance(text, _Text):
            request.of_proposer = text = _Text(len(token_ids))
        for length, is_right in text.follow(token_ids):
            self._chances[length].learn(is_right)
        if text.num_seen < len(token_ids) or not text.match:
            return NO_GUESS
        chances, chance = [], 1.0
        for length in range(text.match, text.match + most):  # each right token makes the match longer
            chance *= text.chance.near(self._chances[min(length, _LONGEST)], _TRUST)
            chances.append(chance)
        start, period = text.at, len(token_ids) - text.at
        if most <= period:
            return Guess(token_ids[start : start + most], chances)
        return Guess([token_ids[start + index % period] for index in range(most)], chances)

    def learn(self, request: Request, num_drafts: int, num_right: int) -> None:
        """See `Proposer`. The tokens of the request tell the same, and more."""


class _Text:
    """The tokens of one request as far as they were taken in, and where its last ones have stood before.

    Pairs of tokens have chains of the places behind them, in two arrays: eight bytes a token.
    """

    __slots__ = ("_earlier", "_latest", "_mask", "at", "chance", "match", "num_seen")

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens`: of the prompt. There is room for more."""
        self._mask = (1 << max(num_tokens, _LEAST_HASHES // 2).bit_length()) - 1
        self._latest = array("i", bytes(4 * (self._mask + 1)))
        """By a pair's hash: the last place behind such a pair."""
        self._earlier = array("i")
        """By place less one: the place before in its chain, 0 at the end."""
        self.num_seen = 0
        self.match = 0
        """How many of the last tokens are those before `at`; 0 if there is no such place."""
        self.at = 0
        """What stands here is the guess of what follows."""
        self.chance = Chance(_FORGET_OWN)

    def follow(self, token_ids: list[int]) -> list[tuple[int, bool]]:
        """Take in tokens that were not seen yet. Returns of each guess its match's length, and whether it was right."""
        start, end = self.num_seen, min(len(token_ids), self.num_seen + _AT_ONCE)
        told = []
        for place in range(start, end):
            if not self.match:
                break
            is_right = token_ids[self.at] == token_ids[place]
            told.append((min(self.match, _LONGEST), is_right))
            self.chance.learn(is_right)
            self.match, self.at = (self.match + 1, self.at + 1) if is_right else (0, 0)
        latest, earlier, mask = self._latest, self._earlier, self._mask
        before = token_ids[start - 1] if start else 0
        for place, token in enumerate(token_ids[start:end], start + 1):
            pair = (before * 0x9E3779B1 + token * 0x85EBCA77 >> 7) & mask
            earlier.append(latest[pair])
            latest[pair] = place
            before = token
        self.num_seen = end
        if not self.match and end == len(token_ids) and end > start:
            self._find(token_ids)
        return told

    def _find(self, token_ids: list[int]) -> None:
        """Look for the earlier place with the longest match, the last one of several."""
        end = len(token_ids)
        place = self._earlier[end - 1]
        for _ in range(_PLACES):
            if not place:
                break
            length = 0
            while length < _LONGEST and length < place and token_ids[place - 1 - length] == token_ids[end - 1 - length]:
                length += 1
            if length > self.match:
                self.match, self.at = length, place
            place = self._earlier[place - 1]
        if self.match < _SHORTEST:  # the pair was another one of equal hash
            self.match = self.at = 0
