"""Cached blocks that somebody asked to keep for a time: they are evicted after those that nobody asked for.

An agent's conversation stands still while its tools run, and goes on with the same beginning. Least recently used is
the wrong order then: what was used last may never be wanted again. Nothing is reserved (law 2): a running request gets
the memory of retained blocks, too, when there is no other.
"""

import heapq
from collections import OrderedDict
from typing import NamedTuple


class Wish(NamedTuple):
    """That a block be kept."""

    until: float
    """Seconds, the scheduler's clock."""
    tenant: str
    weight: float
    """See `Request.weight`."""


class RetainedBlocks:
    """The unused blocks of a pool that are kept by wish, by tenant, and of each the least recently used first.

    Together they are no more than a number of blocks. When that is reached, the tenant that has most for its weight
    gives up one: so nobody's wishes push out what others need, and whoever is alone has all of it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[str, OrderedDict[int, None]] = {}  # tenants without blocks are not in it
        self._weights: dict[str, float] = {}
        self._wishes: dict[int, Wish] = {}
        self._ends: list[tuple[float, int]] = []  # a heap, in which blocks may be that are not here any more

    def __len__(self) -> int:
        return len(self._wishes)

    def add(self, block: int, wish: Wish) -> int | None:
        """Keep a block; returns the one that has to be given up for it, if any."""
        self._of.setdefault(wish.tenant, OrderedDict())[block] = None
        self._weights[wish.tenant] = wish.weight
        self._wishes[block] = wish
        if len(self._ends) > 2 * self._most:
            self._ends = [(wish.until, block) for block, wish in self._wishes.items()]
            heapq.heapify(self._ends)
        else:
            heapq.heappush(self._ends, (wish.until, block))
        return self.pop() if len(self._wishes) > self._most else None

    def remove(self, block: int) -> None:
        """A block is used again, or its time is over."""
        tenant = self._wishes.pop(block).tenant
        del self._of[tenant][block]
        if not self._of[tenant]:
            del self._of[tenant], self._weights[tenant]

    def pop(self) -> int:
        """Give up the block that is least worth keeping; there is one."""
        most = max(self._of, key=lambda tenant: len(self._of[tenant]) / self._weights[tenant])
        block = next(iter(self._of[most]))
        self.remove(block)
        return block

    def expired(self, now: float) -> list[int]:
        """Blocks that were to be kept until now. They are not here any more."""
        blocks = []
        while self._ends and self._ends[0][0] <= now:
            until, block = heapq.heappop(self._ends)
            wish = self._wishes.get(block)
            if wish is not None and wish.until == until:
                self.remove(block)
                blocks.append(block)
        return blocks

    def clear(self) -> None:
        """Forget all of them."""
        self._of.clear()
        self._weights.clear()
        self._wishes.clear()
        self._ends.clear()
