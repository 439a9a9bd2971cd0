"""How many drafts a step has: as many as give the most tokens a second, by measured times of steps and chances.

Few requests leave most of the processor idle while weights are read, so that more tokens take hardly more time. With
many requests they do, and there are no drafts. See "Performance or Illusion?" (arXiv 2601.11580).
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import median

from ..core.request import Request
from ..core.step import MAX_WITH_DRAFTS, SchedulerOutput
from .drafts import Guess, Proposer

_MOST_DRAFTS = 15
"""Of a request."""
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
_FORGOTTEN = 1000
"""Steps without drafts until more is tried again: what was measured may have been bad luck."""


class StepTimes:
    """How much longer steps with drafts take than those without, by their numbers of requests and drafts.

    Other programs may take a part of the processor at any time, and texts become longer. So steps are compared with
    others that ran shortly before.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}
        """Seconds of the last steps without drafts, by their number of requests."""
        self._age: dict[int, int] = {}
        """Steps with drafts since the last of these."""
        self._num_plain: dict[int, int] = {}
        self._ratios: dict[int, dict[int, deque[float]]] = {}

    def observe(self, rows: int, drafts: int, seconds: float) -> None:
        """Learn from a step. The first with so many drafts tells nothing: its work may have been recorded."""
        if drafts == 0:
            self._plain.setdefault(rows, deque(maxlen=_COMPARED)).append(seconds)
            self._age[rows] = 0
            self._num_plain[rows] = self._num_plain.get(rows, 0) + 1
            if self._num_plain[rows] % _FORGOTTEN == 0:
                self._ratios.pop(rows, None)
            return
        self._age[rows] = self._age.get(rows, 0) + 1
        of_rows = self._ratios.setdefault(rows, {})
        if drafts not in of_rows:
            of_rows[drafts] = deque(maxlen=_REMEMBERED)
        elif len(self._plain.get(rows, ())) == _COMPARED:
            of_rows[drafts].append(seconds / median(self._plain[rows]))

    def expected(self, rows: int, most: int) -> list[float]:
        """Of steps with 0 to `most` drafts, in times of one without; none if the latter is not known well enough.

        What was not measured is on a line between what was, and on a longer line beyond. That goes to twice as many
        drafts as were measured, and a few, so that trying cannot cost much.
        """
        if len(self._plain.get(rows, ())) < _COMPARED or self._age[rows] >= _STALE:
            return []
        known = {n: median(times) for n, times in self._ratios.get(rows, {}).items() if len(times) >= _RELIABLE}
        known[0] = 1.0
        expected, slope = [1.0], _COST / (rows + 3)
        for number in [*sorted(known)[1:], min(most, 2 * max(known) + 2 + rows // 4)]:
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

        The token that is in flight has to be guessed, too.
        """
        gains = [gain for guess in self._guesses(requests).values() for gain in guess.chances[1:]]
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
            if tokens / duration > best:
                best, number = tokens / duration, count
        return number

    def learn(self, request: Request, num_right: int) -> None:
        """Learn how many drafts of a request's step were right."""
        self._proposer.learn(request, request.num_drafts, num_right)

    def observe(self, step: SchedulerOutput, seconds: float) -> None:
        """Learn from the time of a step that has run."""
        num_drafts = sum(map(len, step.drafts.values()))
        if step.num_tokens - num_drafts == len(step.rows) <= self.most_rows:
            self._times.observe(len(step.rows), num_drafts, seconds)
