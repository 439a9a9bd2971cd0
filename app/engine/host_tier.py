"""Host memory behind the device's KV blocks: which evicted blocks are there, and which copies a step begins with.

Steps run in order, so a block can be given to another request at once: the step that writes to it first copies out what
it held, and a step that admits a request first copies in what that starts with. Nothing waits for a copy but the
step that needs it.
"""

from collections.abc import Sequence

from ..core.step import BlockCopies
from .block_pool import BlockPool
from .retention import Wish


class HostTier:
    """The places of one KV group. What they hold is found by the same hashes as blocks of the device are."""

    def __init__(self, num_places: int) -> None:
        self.pool = BlockPool(num_places)
        self.pays = True
        """Whether copying takes less time than computing; if not, nothing is copied."""
        self._copies = BlockCopies()
        self._in_copies: list[tuple[int, Wish | None]] = []
        """Places of the copies that are planned, which nobody else may get before the step after them."""

    def holds(self, block_hash: bytes) -> bool:
        """Whether a block can be copied in."""
        return self.pays and self.pool.prefix_cache.block(block_hash) is not None

    def keep(self, block: int, block_hash: bytes, wish: Wish | None) -> None:
        """A block of the device is being evicted: have it copied, unless a copy is here. See `BlockPool`."""
        if not self.pays:
            return
        place = self.pool.prefix_cache.block(block_hash)
        if place is not None:
            self.pool.share([place])
        elif self.pool.num_available:
            (place,) = self.pool.allocate(1)
            self.pool.prefix_cache.insert(block_hash, place)
            self._copies.out.append((block, place))
        else:  # all places are in copies of this step
            return
        self._in_copies.append((place, wish))

    def fetch(self, hashes: Sequence[bytes]) -> list[int]:
        """Places of blocks that are here; they stay until the next step. To be followed by `copy_in`."""
        places = [place for h in hashes if (place := self.pool.prefix_cache.block(h)) is not None]
        self.pool.share(places)
        self._in_copies += [(place, None) for place in places]
        return places

    def copy_in(self, places: list[int], blocks: list[int]) -> None:
        """Copy what is in these places to these blocks of the device."""
        self._copies.into += zip(places, blocks, strict=True)

    def take_copies(self) -> BlockCopies:
        """What the next step begins with."""
        copies, self._copies = self._copies, BlockCopies()
        for place, wish in reversed(self._in_copies):  # as blocks of a table, see `BlockPool.free`
            self.pool.free([place], wish)
        for place, _ in copies.into:  # the device has it, too
            self.pool.make_first(place)
        self._in_copies.clear()
        return copies

    def clear(self) -> None:
        """Forget all that is here: it may be wrong."""
        self.take_copies()
        self.pool.clear_prefix_cache()
