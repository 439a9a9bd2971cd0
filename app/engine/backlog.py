"""The requests that wait for their first output, and the rate at which they get it."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from ..core.wire import GenerateCommand, RequestCommand

_WINDOW = 10.0
"""Seconds over which the rate is measured, at most."""
_SHORTEST_WINDOW = 1.0
"""A batch gets its first outputs at one moment, which says little of the rate."""
_FIRST_GUESS = 5.0
"""Seconds, at most, that a client is told to wait before anything that waits now has been served."""
_LONGEST_WAIT = 60.0


class Backlog:
    """The requests of one API worker that have had no output yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, RequestCommand] = {}
        self._waits_since = 0.0
        self._departures: deque[float] = deque()  # of the last seconds, and since some request has been waiting
        self._rate: float | None = None  # departures a second, when it was last seen
        self.num_tokens = 0
        """Of their prompts."""
        self.by_tenant: Counter[str] = Counter()
        """How many are whose."""
        self.tokens_by_tenant: Counter[str] = Counter()

    def enter(self, command: RequestCommand) -> None:
        """A request begins to wait."""
        if not self._requests:
            self._waits_since = self._clock()
            self._departures.clear()
        self._requests[command.request_id] = command
        self._count(command, 1)

    def leave(self, request_id: str, was_served: bool) -> None:
        """A request has stopped waiting; does nothing if it was not waiting."""
        command = self._requests.pop(request_id, None)
        if command is None:
            return
        self._count(command, -1)
        if was_served:
            self._measure_rate()

    def _measure_rate(self) -> None:
        now = self._clock()
        self._departures.append(now)
        while self._departures[0] < now - _WINDOW:
            self._departures.popleft()
        self._rate = len(self._departures) / min(_WINDOW, max(_SHORTEST_WINDOW, now - self._waits_since))

    def _count(self, command: RequestCommand, times: int) -> None:
        num_tokens = times * _num_tokens(command)
        self.num_tokens += num_tokens
        self.by_tenant[command.tenant] += times
        self.tokens_by_tenant[command.tenant] += num_tokens

    @property
    def retry_after(self) -> int:
        """Seconds until half of the requests will have had their first output, at the rate that was last seen.

        It is at least the time in which none was served.
        """
        if not self._requests:
            return 1
        seconds = len(self._requests) / 2 / self._rate if self._rate else _FIRST_GUESS
        if not self._departures:  # a burst after a silence, of which the rate was another
            seconds = min(seconds, _FIRST_GUESS)
        served_at = self._departures[-1] if self._departures else self._waits_since
        return math.ceil(min(_LONGEST_WAIT, max(1.0, seconds, self._clock() - served_at)))


def _num_tokens(command: RequestCommand) -> int:
    if isinstance(command, GenerateCommand):
        return len(command.prompt_token_ids) + (command.source.num_tokens if command.source else 0)
    return command.num_tokens
