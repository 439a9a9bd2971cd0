"""Drafts from texts: where a request's last tokens have stood before, what followed may follow again.

They stood in the request's own prompt and answer, or in what another request of the tenant had, whose prompt began
alike, and which has ended.

Answers that quote, edit or extend their prompt repeat long pieces of it, and so do lists, tables and code. See "Prompt
lookup decoding" (Saxena, 2023) and "SuffixDecoding" (Oliaro et al., 2024), which also looks for the longest match.
"""

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator

from ..core.request import Request
from .drafts import NO_GUESS, Chance, Guess

_AT_ONCE = 512
"""Most tokens of a prompt that are taken in before a step: a tenth of a millisecond."""
_PLACES = 8
"""Most earlier places that are compared."""
_LONGEST = 16
"""Tokens of a match that count: with more of them, what follows is not more certain."""
_SHORTEST, _SHORTEST_OF_OTHERS = 2, 4
"""Tokens that have to match, in the request's own text and in those of others."""
_CONTEXT = 32
"""Tokens at their beginning in which texts are alike."""
_LEAST_ANSWER = 16
"""Tokens of an answer that is kept for others."""
_MOST_ANSWERS, _MOST_KEPT = 4, 2**20
"""Answers that are kept for each beginning, and numbers that all of them hold: some ten megabytes."""
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
        self._answers = _Answers()

    def propose(self, request: Request, most: int) -> Guess:
        """See `Proposer`."""
        text = request.of_proposer
        if not isinstance(text, _Text):
            request.of_proposer = text = _Text(request.token_ids)
        for length, is_right in text.follow(self._answers.of_alike(request)):
            self._chances[length].learn(is_right)
        token_ids = text.next_tokens(most)
        if not token_ids:
            return NO_GUESS
        chances, chance = [], 1.0
        for length in range(text.match, text.match + len(token_ids)):  # each right token makes the match longer
            chance *= text.chance.near(self._chances[min(length, _LONGEST)], _TRUST)
            chances.append(chance)
        return Guess(token_ids, chances)

    def learn(self, request: Request, num_drafts: int, num_right: int) -> None:
        """See `Proposer`. The tokens of the request tell the same, and more."""

    def end(self, request: Request) -> None:
        """See `Proposer`. Others may go on as this one did."""
        if isinstance(request.of_proposer, _Text) and request.num_output_tokens >= _LEAST_ANSWER:
            self._answers.keep(request, request.of_proposer.places)


class _Places:
    """Where pairs of tokens stand in a text, as far as it was taken in.

    They have chains of the places behind them, in two arrays: eight bytes a token.
    """

    __slots__ = ("_earlier", "_latest", "_mask", "num_seen", "token_ids")

    def __init__(self, token_ids: list[int]) -> None:
        """The text may go on."""
        self.token_ids = token_ids
        self._mask = (1 << max(len(token_ids), _LEAST_HASHES // 2).bit_length()) - 1
        self._latest = array("i", bytes(4 * (self._mask + 1)))
        """By a pair's hash: the last place behind such a pair."""
        self._earlier = array("i")
        """By place less one: the place before in its chain, 0 at the end."""
        self.num_seen = 0

    @property
    def size(self) -> int:
        """Numbers that it holds."""
        return 2 * len(self.token_ids) + len(self._latest)

    def take_in(self) -> None:
        """Some more tokens."""
        start, latest, earlier, mask = self.num_seen, self._latest, self._earlier, self._mask
        self.num_seen = min(len(self.token_ids), start + _AT_ONCE)
        before = self.token_ids[start - 1] if start else 0
        for place, token in enumerate(self.token_ids[start : self.num_seen], start + 1):
            pair = _hash(before, token) & mask
            earlier.append(latest[pair])
            latest[pair] = place
            before = token

    def longest_match(self, token_ids: list[int]) -> tuple[int, int]:
        """How many of the last tokens of a text stand here together, and the place behind them, the last of several.

        The text has two tokens at least. If it is this one, an earlier place. Zeros if there is none.
        """
        end = len(token_ids)
        is_own = token_ids is self.token_ids
        place = self._earlier[end - 1] if is_own else self._latest[_hash(*token_ids[-2:]) & self._mask]
        own, match, at = self.token_ids, 0, 0
        for _ in range(_PLACES):
            if not place:
                break
            length, most = 0, min(_LONGEST, place, end)
            while length < most and own[place - 1 - length] == token_ids[end - 1 - length]:
                length += 1
            if length > match and place < len(own):
                match, at = length, place
            place = self._earlier[place - 1]
        return match, at


def _hash(first: int, second: int) -> int:
    return first * 0x9E3779B1 + second * 0x85EBCA77 >> 7


class _Text:
    """The tokens of one request, and where its last ones have stood before."""

    __slots__ = ("_source", "at", "chance", "match", "places")

    def __init__(self, token_ids: list[int]) -> None:
        self.places = _Places(token_ids)
        self.match = 0
        """How many of the last tokens are those before `at`; 0 if there is no such place."""
        self.at = 0
        """What stands here is the guess of what follows."""
        self._source = self.places
        """The text where it stands."""
        self.chance = Chance(_FORGET_OWN)

    def follow(self, others: Iterable[_Places]) -> list[tuple[int, bool]]:
        """Take in tokens that were not seen yet. Returns of each guess its match's length, and whether it was right.

        others: texts in which places are looked for, too.
        """
        start, token_ids = self.places.num_seen, self.places.token_ids
        self.places.take_in()
        told = []
        for token in token_ids[start : self.places.num_seen]:
            if not self.match:
                break
            is_right = self._source.token_ids[self.at] == token
            told.append((min(self.match, _LONGEST), is_right))
            self.chance.learn(is_right)
            self.match, self.at = (self.match + 1, self.at + 1) if is_right else (0, 0)
            if self.at == len(self._source.token_ids):  # another text ends here
                self.match = self.at = 0
        if not self.match and start < self.places.num_seen == len(token_ids) > 1:
            self._find(others)
        return told

    def _find(self, others: Iterable[_Places]) -> None:
        token_ids, least = self.places.token_ids, _SHORTEST
        for source in (self.places, *others):
            match, at = source.longest_match(token_ids)
            if match >= least:  # a shorter one may also be of another pair of equal hash
                self.match, self.at, self._source = match, at, source
            least = max(_SHORTEST_OF_OTHERS, self.match + 1)

    def next_tokens(self, most: int) -> list[int]:
        """Up to so many that may follow; none while tokens have not been taken in."""
        if not self.match or self.places.num_seen < len(self.places.token_ids):
            return []
        source = self._source.token_ids
        period = len(source) - self.at
        if most <= period or self._source is not self.places:
            return source[self.at : self.at + most]
        return [source[self.at + index % period] for index in range(most)]


class _Answers:
    """Texts of requests that have ended, those that were used last at the end."""

    def __init__(self) -> None:
        self._by_beginning: OrderedDict[Hashable, list[_Places]] = OrderedDict()
        self._size = 0

    def keep(self, request: Request, places: _Places) -> None:
        """The text of a request, unless it would take the place of many."""
        if places.size > _MOST_KEPT // 4:
            return
        beginning = self._beginning(request)
        texts = self._by_beginning.setdefault(beginning, [])
        texts.append(places)
        self._size += places.size
        if len(texts) > _MOST_ANSWERS:
            self._size -= texts.pop(0).size
        self._by_beginning.move_to_end(beginning)
        while self._size > _MOST_KEPT:
            _, dropped = self._by_beginning.popitem(last=False)
            self._size -= sum(text.size for text in dropped)

    def of_alike(self, request: Request) -> Iterator[_Places]:
        """Those that began as the request does, of the same tenant, the latest first."""
        yield from reversed(self._by_beginning.get(self._beginning(request), []))

    def _beginning(self, request: Request) -> Hashable:
        first = request.token_ids[: min(_CONTEXT, request.num_prompt_tokens)]
        return request.tenant, request.cache_salt, tuple(first)
