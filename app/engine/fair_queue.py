"""Whose turn it is: waiting requests in lines by tenant, served so that each tenant gets its share.

By virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): a tenant's counter says
how much service it had, over its weight, and the one with the least is next. A tenant that comes back after a pause has
not saved up service meanwhile: its counter is lifted to the least of those that wait, but for a small credit. Within a
tenant, priority and then arrival decide. With one tenant that is all that decides.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

INPUT_COST = 1.0
OUTPUT_COST = 2.0
"""Of a token, as in the paper: one that is generated takes a step of its own."""


class Queued(Protocol):
    """What can wait in a queue."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def weight(self) -> float:
        """How much service its tenant is due, beside the others."""
        ...

    @property
    def sort_key(self) -> tuple[int, float]:
        """Its place among its tenant's."""
        ...


T = TypeVar("T", bound=Queued)


_PRESENCE = 10.0
"""Seconds after which a tenant that wants nothing is gone."""


@dataclass(slots=True)
class _Line(Generic[T]):
    """One tenant's requests and account."""

    counter: float = 0.0
    last_charge: int = 0
    seen_at: float = 0.0
    heap: list[tuple[tuple[int, float], int, T]] = field(default_factory=list)


class FairQueue(Generic[T]):
    """A heap for each tenant. To find the next one costs as much as there are tenants, however many requests wait."""

    def __init__(self, is_waiting: Callable[[T], bool], credit: float = 0.0) -> None:
        """`is_waiting`: false for what needs no service any more, which is passed over when its turn comes.

        `credit`: service that a tenant of weight 1 may have saved up after all, so that one that sends little, request
        by request, need not wait for a large one of others each time.
        """
        self._is_waiting = is_waiting
        self._credit = credit
        self._lines: dict[str, _Line[T]] = {}
        self._size = 0
        self._arrivals = 0
        self._charges = 0
        self._last_counter = 0.0  # of the tenant that was served last
        self._now = 0.0
        self.has_several_tenants = False
        """Without them there is nothing to share."""

    def look_around(self, now: float, served: Iterable[T]) -> None:
        """Forget tenants that have been away for long: to be called from time to time, with what is not waiting."""
        self._now = now
        if len(self._lines) > 1:
            for item in served:
                self._line_of(item).seen_at = now
            present = {name: line for name, line in self._lines.items() if line.heap or line.seen_at > now - _PRESENCE}
            if present and len(present) < len(self._lines):  # who returns is not better off than who stayed
                self._lines = present
                self._last_counter = max(self._last_counter, min(line.counter for line in present.values()))
        self.has_several_tenants = len(self._lines) > 1

    def push(self, item: T) -> None:
        """Put something new into its tenant's line."""
        line = self._line_of(item)
        if self._first_in(line) is None:  # back from a pause
            waiting = [other.counter for other in self._lines.values() if self._first_in(other) is not None]
            line.counter = max(line.counter, min(waiting, default=self._last_counter) - self._credit / item.weight)
        self.put_back(item)

    def put_back(self, item: T) -> None:
        """Put something into its tenant's line that was in it before: the tenant has not been away."""
        self._arrivals += 1  # breaks ties, so that items themselves are never compared
        line = self._line_of(item)
        line.seen_at = self._now
        heapq.heappush(line.heap, (item.sort_key, self._arrivals, item))
        self._size += 1

    def first(self) -> T | None:
        """The item whose turn it is; None if none is waiting."""
        best: tuple[tuple[float, int], T] | None = None
        for line in self._lines.values():
            turn = line.counter, line.last_charge  # one that is back from a pause goes before the one it was lifted to
            if (best is None or turn < best[0]) and (item := self._first_in(line)) is not None:
                best = turn, item
        return best[1] if best else None

    def some(self, most: int) -> Iterator[T]:
        """Some of each tenant that wait, up to so many."""
        for line in self._lines.values():
            yield from (item for _, _, item in line.heap[:most] if self._is_waiting(item))

    def pop(self, item: T) -> None:
        """Take out what `first` gave."""
        line = self._lines[item.tenant]
        heapq.heappop(line.heap)
        self._size -= 1
        self._last_counter = line.counter

    def charge(self, item: T, cost: float) -> None:
        """Its tenant was given service."""
        line = self._line_of(item)
        line.counter += cost / item.weight
        line.seen_at = self._now
        self._charges += 1
        line.last_charge = self._charges

    def counter(self, tenant: str) -> float:
        """The service that a tenant had, over its weight; 0 for one that never waited."""
        line = self._lines.get(tenant)
        return line.counter if line else 0.0

    def forget_ended(self, num_waiting: int) -> None:
        """What is not waiting any more stays in its line until it comes up, or is too much: `num_waiting` are."""
        if self._size <= 2 * num_waiting + 16:
            return
        for line in self._lines.values():
            line.heap = [entry for entry in line.heap if self._is_waiting(entry[2])]
            heapq.heapify(line.heap)
        self._size = sum(len(line.heap) for line in self._lines.values())

    def _line_of(self, item: T) -> _Line[T]:
        line = self._lines.get(item.tenant)
        if line is None:
            line = self._lines[item.tenant] = _Line()
        return line

    def _first_in(self, line: _Line[T]) -> T | None:
        while line.heap:
            item = line.heap[0][2]
            if self._is_waiting(item):
                return item
            heapq.heappop(line.heap)
            self._size -= 1
        return None
