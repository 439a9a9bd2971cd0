"""Snapshots of recurrent states: what a row kept where its prompt's last full block ended.

An agent's next turn begins with its last prompt. K and V of that are in blocks still, but the state has gone on with
the answer. So the worker keeps a copy.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Snapshots:
    """Which of the worker's places for snapshots hold the state behind which tokens, by the hash of their last block.

    Steps run in order, so a place can be given to another snapshot at once: whoever begins with the old one in the
    same step, or in one before, reads it first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._place_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._being_made: dict[bytes, int] = {}  # by the step that is being planned
        self._free = list(range(count))

    def longest_match(self, hashes: Sequence[bytes]) -> int:
        """The largest number of blocks behind which there is a snapshot, of blocks with these hashes."""
        return next((count for count in range(len(hashes), 0, -1) if hashes[count - 1] in self._place_of), 0)

    def use(self, block_hash: bytes) -> int:
        """The place of a snapshot, for a request that begins with it."""
        self._place_of.move_to_end(block_hash)
        return self._place_of[block_hash]

    def make(self, block_hash: bytes) -> int | None:
        """A place for a snapshot that the next step is to make; None if it would be of no use, or there is no place."""
        if block_hash in self._place_of or block_hash in self._being_made:
            return None
        if not self._free and self._place_of:
            self._free.append(self._place_of.popitem(last=False)[1])
        if not self._free:
            return None
        place = self._being_made[block_hash] = self._free.pop()
        return place

    def begin_step(self) -> None:
        """A step is planned that runs behind those before: in it, requests can begin with what these have made."""
        self._place_of.update(self._being_made)
        self._being_made.clear()

    def clear(self) -> None:
        """Forget all of them: they may be wrong."""
        self._place_of.clear()
        self._being_made.clear()
        self._free = list(range(self._count))
