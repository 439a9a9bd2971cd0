"""The requests that wait for their first output, and the rate at which they get it."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from app.core.wire import GenerateCommand, RequestCommand

_WINDOW = 10.0
"""Seconds over which the rate is measured."""
_LONGEST_WAIT = 60


class Backlog:
    """The requests of one API worker that have had no output yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, RequestCommand] = {}
        self._departures: deque[float] = deque()
        self.num_tokens = 0
        """Of their prompts."""
        self.by_tenant: Counter[str] = Counter()
        """How many are whose."""
        self.tokens_by_tenant: Counter[str] = Counter()

    def enter(self, command: RequestCommand) -> None:
        """A request begins to wait."""
        self._requests[command.request_id] = command
        self._count(command, 1)

    def leave(self, request_id: str, was_served: bool) -> None:
        """A request has stopped waiting; does nothing if it was not waiting."""
        command = self._requests.pop(request_id, None)
        if command is None:
            return
        self._count(command, -1)
        if was_served:
            self._departures.append(self._clock())
            self._forget()

    def _count(self, command: RequestCommand, times: int) -> None:
        num_tokens = times * _num_tokens(command)
        self.num_tokens += num_tokens
        self.by_tenant[command.tenant] += times
        self.tokens_by_tenant[command.tenant] += num_tokens

    @property
    def retry_after(self) -> int:
        """Seconds until half of the requests have had their first output, at the recent rate, within fixed bounds."""
        self._forget()
        if not self._departures:
            return _LONGEST_WAIT if self._requests else 1
        rate = len(self._departures) / _WINDOW
        return min(_LONGEST_WAIT, math.ceil(max(1, len(self._requests)) / 2 / rate))

    def _forget(self) -> None:
        while self._departures and self._departures[0] < self._clock() - _WINDOW:
            self._departures.popleft()


def _num_tokens(command: RequestCommand) -> int:
    return len(command.prompt_token_ids if isinstance(command, GenerateCommand) else command.token_ids)
