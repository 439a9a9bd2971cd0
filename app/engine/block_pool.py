"""Which KV blocks are used, cached or free."""

from collections import OrderedDict
from collections.abc import Callable

from .prefix_cache import PrefixCache
from .retention import RetainedBlocks, Wish

_MOST_RETAINED = 0.5
"""Share of a pool's blocks that wishes may keep; the others are evicted least recently used."""


class BlockPool:
    """Hands out KV blocks and takes them back, counting references.

    A block is in exactly one of four states:

    - used:     some block tables name it (its reference count says how many);
    - cached:   no table names it, but the prefix cache knows what it holds. It can be taken back into use as it is,
      or evicted, least recently used first;
    - retained: cached, and somebody asked to keep it for a time. It is evicted when no other block is left;
    - free:     its contents mean nothing.
    """

    def __init__(self, num_blocks: int, on_eviction: Callable[[int, bytes, Wish | None], None] | None = None) -> None:
        """`on_eviction` is told the block, the hash of what it holds, and the wish to keep it. What it held can be
        read before the next step writes.
        """
        self.num_blocks = num_blocks
        self.prefix_cache = PrefixCache()
        self._on_eviction = on_eviction
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack, lowest id on top
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._retained = RetainedBlocks(int(num_blocks * _MOST_RETAINED))
        self._wishes: dict[int, Wish] = {}  # of used and cached blocks
        self._now = float("-inf")

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free, cached and retained ones."""
        return len(self._free) + len(self._cached) + len(self._retained)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_retained(self) -> int:
        return len(self._retained)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def states(self, stride: int) -> bytes:
        """Of every `stride`-th block: 0 free, 1 cached, 2 used by one request, 3 shared by several."""
        known = self.prefix_cache
        return bytes(
            min(count, 2) + 1 if count else block * stride in known
            for block, count in enumerate(self._references[::stride])
        )

    def allocate(self, count: int) -> list[int]:
        """`count` blocks whose contents mean nothing, each with one reference.

        Evicts cached blocks when no free ones are left. The caller has checked `num_available`.
        """
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def _evict(self) -> int:
        block = self._cached.popitem(last=False)[0] if self._cached else self._retained.pop()
        block_hash, wish = self.prefix_cache.remove(block), self._wishes.pop(block, None)
        if self._on_eviction:
            self._on_eviction(block, block_hash, wish)
        return block

    def share(self, blocks: list[int]) -> None:
        """One more reference to each of these blocks, which the prefix cache named."""
        for block in blocks:
            if self._references[block] == 0:
                if block in self._cached:
                    del self._cached[block]
                else:
                    self._retained.remove(block)
            self._references[block] += 1

    def num_unused(self, blocks: list[int]) -> int:
        """How many of these blocks are in no table, and so available to `allocate` until they are shared."""
        return sum(self._references[block] == 0 for block in blocks)

    def free(self, blocks: list[int], wish: Wish | None = None) -> None:
        """One reference less to each block of a table, with a wish to keep them, or without.

        Later blocks are evicted first: the beginning of a prompt is what others are most likely to share.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            is_known = block in self.prefix_cache
            if is_known and wish and (block not in self._wishes or self._wishes[block].until < wish.until):
                self._wishes[block] = wish
            if self._references[block] > 0:
                continue
            if not is_known:
                self._free.append(block)
            elif self._wishes and block in self._wishes:
                self._keep(block)
            else:
                self._cached[block] = None

    def _keep(self, block: int) -> None:
        """A block that is in no table any more is retained, unless the time of its wish passed while it was used."""
        wish = self._wishes[block]
        if wish.until <= self._now:
            given_up: int | None = block
        else:
            given_up = self._retained.add(block, wish)
        if given_up is not None:
            self._give_up(given_up)

    def _give_up(self, block: int, is_old: bool = False) -> None:
        """A retained block becomes one that is only cached."""
        del self._wishes[block]
        self._cached[block] = None
        if is_old:
            self._cached.move_to_end(block, last=False)

    def expire(self, now: float) -> None:
        """Blocks that were to be kept until `now` are evicted like others from now on, and before them."""
        self._now = now
        if self._wishes:
            for block in self._retained.expired(now):
                self._give_up(block, is_old=True)

    def make_first(self, block: int) -> None:
        """Evict this block before all others, if it is cached: what it holds is elsewhere, too."""
        if block in self._cached:
            self._cached.move_to_end(block, last=False)

    def clear_prefix_cache(self) -> None:
        """Forget what all blocks hold; those in use stay in use."""
        self.prefix_cache.clear()
        self._wishes.clear()
        self._free = [block for block in range(self.num_blocks - 1, -1, -1) if self._references[block] == 0]
        self._cached.clear()
        self._retained.clear()
