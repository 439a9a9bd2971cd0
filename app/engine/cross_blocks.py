"""KV blocks of cross-attention: what decoders read of encoders' outputs.

A request gets all of its blocks when it gets its row, and keeps them as long as that. They are known by the digest of
what the encoder has read, so requests of equal input share them, as the `n` choices of a call do, and the encoder reads
it once. The block pool counts references, and evicts least recently used inputs, as it does with prefixes.
"""

import hashlib

from ..core.request import Request
from ..core.step import CrossMemory
from .block_pool import BlockPool


class CrossBlocks:
    """Hands out the blocks, and knows which inputs they hold."""

    def __init__(self, memory: CrossMemory, block_size: int, caching: bool) -> None:
        """`caching`: whether requests share blocks."""
        self.pool = BlockPool(memory.num_blocks)
        self._block_size = block_size
        self._caching = caching

    def has_room(self, request: Request) -> bool:
        """Whether a request that holds nothing can have its blocks."""
        if cached := self._cached(request):
            return self.pool.num_unused(cached) <= self.pool.num_available
        return self._count(request) <= self.pool.num_available

    def is_cached(self, request: Request) -> bool:
        """Whether the encoder has read a request's input, and its blocks are there."""
        return bool(self._cached(request))

    def start(self, request: Request) -> None:
        """Give a request its blocks: those that hold its input, or others, which the step that it begins in fills.

        That step fills them before any request reads them, so these are known from now on.
        """
        if cached := self._cached(request):
            self.pool.share(cached)
            request.cross_blocks = cached
            return
        request.cross_blocks = self.pool.allocate(self._count(request))
        if self._caching:
            for block_hash, block in zip(self._hashes(request), request.cross_blocks, strict=True):
                self.pool.prefix_cache.insert(block_hash, block)

    def free(self, request: Request) -> None:
        """Take a request's blocks back."""
        self.pool.free(request.cross_blocks)
        request.cross_blocks = []

    def _cached(self, request: Request) -> list[int]:
        """The blocks that hold a request's input; none if one of them is missing."""
        if not self._caching:
            return []
        blocks = [self.pool.prefix_cache.block(block_hash) for block_hash in self._hashes(request)]
        found = [block for block in blocks if block is not None]
        return found if len(found) == len(blocks) else []

    def _count(self, request: Request) -> int:
        return -(-request.num_source_tokens // self._block_size)

    def _hashes(self, request: Request) -> list[bytes]:
        """Of each block. The salt has the input's digest in it: see `salt_of_source`."""
        if not request.cross_hashes:
            names = (f"{index} {request.cache_salt}" for index in range(self._count(request)))
            request.cross_hashes = [hashlib.sha256(name.encode()).digest() for name in names]
        return request.cross_hashes


def salt_of_source(cache_salt: str, digest: bytes) -> str:
    """The salt of a request with an encoder's input: its tokens' K and V depend on that, too."""
    return f"{cache_salt} {digest.hex()}"
