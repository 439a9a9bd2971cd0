"""Requests that wait, in one line."""

import heapq
from collections.abc import Iterator
from itertools import islice

from ..core.request import Request

_MOST_ENDED = 16
"""Ended requests that are kept in a line however short it is."""


class Line:
    """A heap by `sort_key`. Requests that end while they wait stay until they come up, or until they are many."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float], int, Request]] = []
        self._num_arrived = 0  # breaks ties, so that requests themselves are never compared
        self._num_ended = 0  # of those in the heap

    def push(self, request: Request) -> None:
        """Add a request at its place."""
        self._num_arrived += 1
        heapq.heappush(self._heap, (request.sort_key, self._num_arrived, request))

    def first(self) -> Request | None:
        """The first request that still waits."""
        while self._heap:
            request = self._heap[0][2]
            if request.is_waiting:
                return request
            heapq.heappop(self._heap)
            self._num_ended -= 1
        self._num_ended = 0
        return None

    def pop(self) -> None:
        """Take out what `first` returned."""
        heapq.heappop(self._heap)

    def some(self, most: int) -> Iterator[Request]:
        """Up to so many of those that wait, from the front of the heap."""
        return (request for _, _, request in islice(self._heap, most) if request.is_waiting)

    def count_ended(self) -> None:
        """One of the requests has ended. Once most have, they are dropped."""
        self._num_ended += 1
        if 2 * self._num_ended > len(self._heap) + _MOST_ENDED:
            self._heap = [entry for entry in self._heap if entry[2].is_waiting]
            heapq.heapify(self._heap)
            self._num_ended = 0
