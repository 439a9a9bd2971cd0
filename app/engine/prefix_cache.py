"""Which KV blocks hold which tokens: a chain of hashes of full blocks.

A block's hash covers its tokens and the hash of the block before it, so equal hashes mean equal beginnings of a text:
with a weaker hash than SHA-256, a tenant could forge a collision with another's prompt. Only full blocks are known
here: their contents never change again.
"""

import hashlib
from array import array


def root_hash(salt: str) -> bytes:
    """The parent of a request's first block. Requests of different salt never share a block."""
    return hashlib.sha256(salt.encode()).digest()


def hash_block(parent: bytes, token_ids: list[int], media: bytes = b"") -> bytes:
    """The hash of a full block that follows the block `parent` is the hash of.

    media: what stands in the place of some of its tokens; see `app.core.media.key_of`.
    """
    return hashlib.sha256(parent + array("q", token_ids).tobytes() + media).digest()


class PrefixCache:
    """A two-way map between block ids and hashes of what they hold."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    def insert(self, block_hash: bytes, block: int) -> None:
        """Remember what `block` holds, unless another block is known to hold the same."""
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def block(self, block_hash: bytes) -> int | None:
        """The block that holds what has this hash."""
        return self._block_of.get(block_hash)

    def remove(self, block: int) -> bytes:
        """Forget what `block` holds, since it is about to be overwritten; returns its hash."""
        block_hash = self._hash_of.pop(block)
        del self._block_of[block_hash]
        return block_hash

    def clear(self) -> None:
        """Forget everything."""
        self._block_of.clear()
        self._hash_of.clear()
