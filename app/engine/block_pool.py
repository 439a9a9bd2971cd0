"""Which KV blocks are used, cached or free."""

from collections import OrderedDict

from .prefix_cache import PrefixCache


class BlockPool:
    """Hands out KV blocks and takes them back, counting references.

    A block is in exactly one of three states:

    - used:   some block tables name it (its reference count says how many);
    - cached: no table names it, but the prefix cache knows what it holds. It can be taken back into use as it is,
      or evicted, least recently used first;
    - free:   its contents mean nothing.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = PrefixCache()
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack, lowest id on top
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

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
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self.prefix_cache.remove(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: list[int]) -> None:
        """One more reference to each of these blocks, which the prefix cache named."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def num_unused(self, blocks: list[int]) -> int:
        """How many of these blocks are in no table, and so available to `allocate` until they are shared."""
        return sum(self._references[block] == 0 for block in blocks)

    def free(self, blocks: list[int]) -> None:
        """One reference less to each block of a table.

        Later blocks are evicted first: the beginning of a prompt is what others are most likely to share.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self.prefix_cache:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def clear_prefix_cache(self) -> None:
        """Forget what all blocks hold; those in use stay in use."""
        self.prefix_cache.clear()
        self._free.extend(self._cached)
        self._cached.clear()
