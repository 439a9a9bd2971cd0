"""Requests that wait, in one line."""

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar


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

_MOST_ENDED = 16
"""Ended items that are kept in a line however short it is."""


class Line(Generic[T]):
    """A heap by `sort_key`. An item that ends while it waits stays in the heap until it comes up, or is one of many."""

    def __init__(self, is_waiting: Callable[[T], bool]) -> None:
        """`is_waiting`: false for an item that has ended."""
        self._is_waiting = is_waiting
        self._heap: list[tuple[tuple[int, float], int, T]] = []
        self._num_arrived = 0  # breaks ties, so that items themselves are never compared
        self._num_ended = 0  # of those in the heap

    def push(self, item: T) -> None:
        """Add an item at its place."""
        self._num_arrived += 1
        heapq.heappush(self._heap, (item.sort_key, self._num_arrived, item))

    def first(self) -> T | None:
        """The first item that still waits."""
        while self._heap:
            item = self._heap[0][2]
            if self._is_waiting(item):
                return item
            heapq.heappop(self._heap)
            self._num_ended -= 1
        self._num_ended = 0
        return None

    def pop(self) -> None:
        """Take out what `first` returned."""
        heapq.heappop(self._heap)

    def some(self, most: int) -> Iterator[T]:
        """Up to so many of those that wait, from the front of the heap."""
        return (item for _, _, item in islice(self._heap, most) if self._is_waiting(item))

    def count_ended(self) -> None:
        """One of the items has ended. Once most have, they are dropped."""
        self._num_ended += 1
        if 2 * self._num_ended > len(self._heap) + _MOST_ENDED:
            self._heap = [entry for entry in self._heap if self._is_waiting(entry[2])]
            heapq.heapify(self._heap)
            self._num_ended = 0
