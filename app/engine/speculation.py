"""How many drafts a step has: as many as give the most tokens a second, by measured times of steps and chances.

Few requests leave most of the processor idle while weights are read, so that more tokens take hardly more time. With
many requests they do, and there are no drafts. See "Performance or Illusion?" (arXiv 2601.11580).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from ..core.request import Request
from ..core.step import BY_MODEL, MAX_WITH_DRAFTS, SchedulerOutput
from .drafts import Guess, Proposer

_MOST_DRAFTS = 15
"""Of a request."""
_SIZES = frozenset((*range(9), 12, 16, 24, 32, 48, 64, 96, 128))
"""Tokens that steps with drafts have. Workers prepare a number of tokens when it comes first, which takes as long as
several steps."""
_GAIN = 1.1
"""Drafts have to promise so many times the tokens a second, since times and chances are uncertain."""
_COST = 0.4
"""What a draft adds to the time of a step while nobody knows, as a part of the time for each of its requests and three
more: for reading the weights takes time, too."""
_LEAST_COST = 0.01
"""At least this part of a step's time, for more drafts than were ever measured."""
_REMEMBERED = 7
"""Steps of a kind."""
_RELIABLE = 3
"""So many of them say something: one alone may be noise."""
_COMPARED = 3
"""Steps without drafts that others are compared with."""
_STALE = 16
"""Steps with drafts until one has none, to compare with."""
_PATIENCE, _LEAST_PATIENCE = 500, 64
"""Steps without drafts until drafts are tried again, for each step without that one with drafts takes longer, since
what was measured may have been bad luck. A number of drafts takes four steps to try: so trying costs less than one part
in a hundred."""


@dataclass
class _Times:
    """Of steps with some number of requests."""

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=_COMPARED))
    """Seconds of the last ones without drafts."""
    age: int = 0
    """Steps with drafts since the last of these."""
    ratios: dict[int, deque[float]] = field(default_factory=dict)
    """Seconds of those with drafts, by their number, in times of one without."""
    num_plain: int = 0
    """Steps without drafts since some paid, or all were forgotten."""

    @property
    def known(self) -> dict[int, float]:
        """What steps with drafts usually take, by their number, in times of one without."""
        return {number: median(ratios) for number, ratios in self.ratios.items() if len(ratios) >= _RELIABLE}


class StepTimes:
    """How much longer steps with drafts take than those without, by their numbers of requests and drafts.

    Other programs may take a part of the processor at any time, and texts become longer. So steps are compared with
    others that ran shortly before.
    """

    def __init__(self) -> None:
        self._by_rows: defaultdict[int, _Times] = defaultdict(_Times)

    def observe(self, rows: int, drafts: int, seconds: float) -> None:
        """Learn from a step. The first with so many drafts tells nothing: its work may have been recorded."""
        times = self._by_rows[rows]
        if drafts == 0:
            self._observe_plain(times, seconds)
            return
        times.age += 1
        if drafts not in times.ratios:
            times.ratios[drafts] = deque(maxlen=_REMEMBERED)
            return
        ratios = times.ratios[drafts]
        if len(ratios) >= _RELIABLE:  # they were chosen by what is known
            times.num_plain = 0
        if len(times.plain) == _COMPARED:
            ratios.append(seconds / median(times.plain))

    def _observe_plain(self, times: _Times, seconds: float) -> None:
        times.plain.append(seconds)
        times.age = 0
        times.num_plain += 1
        if times.num_plain % _LEAST_PATIENCE == 0:
            longer = min(times.known.values(), default=1.0) - 1
            if times.num_plain >= _PATIENCE * longer:
                times.num_plain = 0
                for ratios in times.ratios.values():
                    ratios.clear()

    def expected(self, rows: int, most: int) -> list[float]:
        """Of steps with 0 to `most` drafts, in times of one without; none if the latter is not known well enough.

        What was not measured is on a line between what was, and on a longer line beyond. That goes to twice as many
        drafts as were measured, and one for each request, so that trying cannot cost much.
        """
        times = self._by_rows[rows]
        if len(times.plain) < _COMPARED or times.age >= _STALE:
            return []
        known = times.known | {0: 1.0}
        expected, slope = [1.0], _COST / (rows + 3)
        for number in [*sorted(known)[1:], min(most, 2 * max(known) + rows + 1)]:
            before = len(expected) - 1
            if number in known and number > before:
                slope = (known[number] - expected[-1]) / (number - before)
            elif before:
                slope = max((expected[-1] - 1) / before, _LEAST_COST)
            expected += [expected[-1] + slope * step for step in range(1, number - before + 1)]
        return expected


class Speculation:
    """Decides about drafts, for the scheduler, as long as no more than `most_rows` requests run."""

    def __init__(self, proposer: Proposer, max_num_batched_tokens: int, most_rows: int = 32) -> None:
        self.most_rows = most_rows
        self._proposer = proposer
        self._most_tokens = min(MAX_WITH_DRAFTS, max_num_batched_tokens)
        self._times = StepTimes()

    def shrink(self, most_tokens: int) -> None:
        """Plan no larger steps than this from now on."""
        self._most_tokens = min(self._most_tokens, most_tokens)

    def choose(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        """The drafts for a step of these requests, by their ids. Of all, the last token is known."""
        guesses = self._guesses(requests)
        gains = [(gain, name) for name, guess in guesses.items() for gain in guess.chances]
        gains.sort(reverse=True)
        counts = Counter(name for _, name in gains[: self._best_number(len(requests), [gain for gain, _ in gains])])
        return {name: guesses[name].token_ids[:count] for name, count in counts.items()}

    def is_worth_waiting(self, requests: Sequence[Request]) -> bool:
        """Whether drafts promise enough to plan the next step of these requests only when the last one has ended.

        The token that is in flight has to be guessed, too, unless the worker guesses: that waits until it knows it.
        """
        guesses = self._guesses(requests).values()
        gains = [gain for guess in guesses for gain in guess.chances[guess.token_ids[0] != BY_MODEL :]]
        gains.sort(reverse=True)
        return self._best_number(len(requests), gains) > 0

    def _guesses(self, requests: Iterable[Request]) -> dict[str, Guess]:
        guesses = {}
        for request in requests:
            if (most := self._most_drafts(request)) > 0:
                guess = self._proposer.propose(request, most)
                if guess.token_ids:
                    guesses[request.request_id] = guess
        return guesses

    def _most_drafts(self, request: Request) -> int:
        most = _MOST_DRAFTS if request.max_drafts is None else min(request.max_drafts, _MOST_DRAFTS)
        return min(most, request.max_num_tokens - len(request.token_ids) - 1)

    def _best_number(self, rows: int, gains: Sequence[float]) -> int:
        """How many of these drafts are worth their time: tokens that each is expected to give, the best ones first."""
        most = min(len(gains), self._most_tokens - rows)
        times = self._times.expected(rows, most) if most > 0 else []
        best, number, tokens = _GAIN * rows, 0, float(rows)
        for count, (gain, duration) in enumerate(zip(gains, times[1:], strict=False), 1):
            tokens += gain
            if rows + count in _SIZES and tokens / duration > best:
                best, number = tokens / duration, count
        return number

    def learn(self, request: Request, num_right: int) -> None:
        """Learn how many drafts of a request's step were right."""
        self._proposer.learn(request, request.num_drafts, num_right)

    def end(self, request: Request) -> None:
        """A request has ended."""
        self._proposer.end(request)

    def observe(self, step: SchedulerOutput, seconds: float) -> None:
        """Learn from the time of a step that has run."""
        num_drafts = sum(map(len, step.drafts.values()))
        if step.num_tokens - num_drafts == len(step.rows) <= self.most_rows:
            self._times.observe(len(step.rows), num_drafts, seconds)
