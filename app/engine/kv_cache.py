"""KV memory: all that the scheduler knows of it.

Memory is a list of groups, each with blocks of its own. A group keeps all of a request's tokens, or only those in a
window: its blocks behind the window go back, and others get them. The blocks at one index of a request's tables hold
the same tokens in every group, so full blocks have the same hashes in all of them. A request can start with cached
tokens up to where every group still holds what the next token needs, and if rows keep states, where there is a snapshot
of them, too. What a group has evicted may still be in host memory (`HostTier`).
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import repeat

from ..core.media import key_of
from ..core.request import Request, RequestStatus
from ..core.step import BlockCopies, CrossMemory, HostMemory, KVGroup, RowStates
from .block_pool import BlockPool
from .cross_blocks import CrossBlocks
from .host_tier import HostTier
from .prefix_cache import hash_block, root_hash
from .retention import Wish
from .snapshots import Snapshots


class _Group:
    """One group's blocks, and which of a request's it needs."""

    def __init__(self, group: KVGroup, block_size: int, max_num_batched_tokens: int, num_places: int) -> None:
        """`num_places`: blocks for which there is room in host memory."""
        self.host = HostTier(num_places) if num_places else None
        self.pool = BlockPool(group.num_blocks, self.host.keep if self.host else None)
        self._block_size = block_size
        self._window = group.window
        window_and_step = (group.window or 0) + max_num_batched_tokens
        self._most_held = None if group.window is None else -(-window_and_step // block_size) + 1

    def first_needed(self, num_computed: int) -> int:
        """Index of the first block that a request with so many computed tokens still needs."""
        return 0 if self._window is None else max(0, num_computed + 1 - self._window) // self._block_size

    def most_held(self, num_blocks: int) -> int:
        """How many of its first `num_blocks` blocks a request holds at once, at most."""
        return num_blocks if self._most_held is None else min(num_blocks, self._most_held)

    def longest_match(self, hashes: Sequence[bytes]) -> int:
        """Length of the longest prefix, in blocks, whose tail that is still needed is cached in this group."""
        longest = in_a_row = 0
        for index, block_hash in enumerate(hashes):
            if not self._has(block_hash):
                if self._window is None:
                    break
                in_a_row = 0
                continue
            in_a_row += 1
            if index + 1 - in_a_row <= self.first_needed((index + 1) * self._block_size):
                longest = index + 1
        return longest

    def _has(self, block_hash: bytes) -> bool:
        if self.pool.prefix_cache.block(block_hash) is not None:
            return True
        return self.host is not None and self.host.holds(block_hash)

    def cached_blocks(self, hashes: Sequence[bytes]) -> list[int]:
        """Of the blocks that a request starts with, those that it needs and the device has."""
        first = self.first_needed(len(hashes) * self._block_size)
        blocks = [self.pool.prefix_cache.block(block_hash) for block_hash in hashes[first:]]
        return [block for block in blocks if block is not None]

    def start(self, hashes: Sequence[bytes]) -> tuple[list[int], int]:
        """The blocks that a request starts with and needs, and how many of them have to be copied in first."""
        needed = hashes[self.first_needed(len(hashes) * self._block_size) :]
        cached = self.cached_blocks(hashes)
        self.pool.share(cached)
        if self.host is None or len(cached) == len(needed):
            return cached, 0
        # Whatever is evicted for the others goes to places that these do not come from.
        missing = [block_hash for block_hash in needed if self.pool.prefix_cache.block(block_hash) is None]
        places = self.host.fetch(missing)
        blocks = self.pool.allocate(len(missing))
        self.host.copy_in(places, blocks)
        for block_hash, block in zip(missing, blocks, strict=True):
            self.pool.prefix_cache.insert(block_hash, block)
        return self.cached_blocks(hashes), len(missing)


class KVCache:
    """Hands out blocks of all groups to requests, and knows which tokens full blocks hold."""

    def __init__(
        self,
        groups: Sequence[KVGroup],
        block_size: int,
        max_num_batched_tokens: int,
        prefix_caching: bool = True,
        states: RowStates | None = None,
        cross: CrossMemory | None = None,
        host: HostMemory | None = None,
    ) -> None:
        self.block_size = block_size
        self._host = host
        num_places = host.num_blocks if host else (0,) * len(groups)
        self._groups = [
            _Group(group, block_size, max_num_batched_tokens, places)
            for group, places in zip(groups, num_places, strict=True)
        ]
        self._now = 0.0
        self._snapshots = None if states is None else Snapshots(states.num_snapshots)
        self.cross = None if cross is None else CrossBlocks(cross, block_size, prefix_caching)
        """Of what encoders have read; None if there is no cross-attention."""
        self.prefix_caching = prefix_caching and (bool(groups) if states is None else states.num_snapshots > 0)
        self._being_computed: set[bytes] = set()
        """Hashes of prompt blocks that running requests will register, or with states, make snapshots behind."""

    @property
    def pools(self) -> list[BlockPool]:
        """The blocks of each group."""
        return [group.pool for group in self._groups]

    @property
    def usage(self) -> float:
        """0 to 1: blocks that running requests hold, of the group that is fullest."""
        pools = [*self.pools, self.cross.pool] if self.cross else self.pools
        return max((pool.num_used / pool.num_blocks for pool in pools), default=0.0)

    @property
    def retained(self) -> float:
        """0 to 1: blocks that are kept because somebody asked for it, of the group that has most."""
        return max((pool.num_retained / pool.num_blocks for pool in self.pools), default=0.0)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    # ------------------------------------------------------------------ what a request can start with

    def match(self, request: Request) -> int:
        """Tokens that a request need not compute, since every group has cached what follows from."""
        if not self._may_share(request):
            return 0
        self._extend_hashes(request, len(request.token_ids))
        # The last token has to be computed in any case, to get the next one's logits.
        count = self._num_shareable(request)
        all_keep = [group.longest_match for group in self._groups]
        if self._snapshots:
            all_keep.append(self._snapshots.longest_match)
        while True:
            longest = min(longest_match(request.block_hashes[:count]) for longest_match in all_keep)
            if longest == count or len(all_keep) == 1:
                return longest * self.block_size
            count = longest

    def next_is_being_computed(self, request: Request, num_cached: int) -> bool:
        """Whether a running request is about to compute the block that this one needs behind its cached tokens.

        Waiting for it for a step or two costs less than computing it twice: so `n` choices share their prompt.
        """
        first, end = num_cached // self.block_size, self._num_shareable(request)
        if not self._may_share(request):
            return False
        following = request.block_hashes[first : end if self._snapshots else min(first + 1, end)]
        return not self._being_computed.isdisjoint(following)

    def _may_share(self, request: Request) -> bool:
        """Logprobs of a prompt need its logits, and so all of its tokens computed."""
        return self.prefix_caching and request.sampling.prompt_logprobs is None

    def _num_shareable(self, request: Request) -> int:
        return (len(request.token_ids) - 1) // self.block_size

    # ------------------------------------------------------------------ a step

    def begin_step(self, now: float, seconds_of_token: float) -> None:
        """To be called before each step is planned.

        seconds_of_token: what it takes to compute one; 0 if that is not known yet.
        """
        self._now = now
        for group in self._groups:
            group.pool.expire(now)
            if group.host:
                group.host.pool.expire(now)
        if self._snapshots:
            self._snapshots.begin_step()
        if self._host:
            pays = not seconds_of_token or self._host.seconds_of_block < seconds_of_token * self.block_size
            for group in self._groups:
                if group.host:
                    group.host.pays = pays

    def take_copies(self) -> list[BlockCopies]:
        """What the step that has been planned begins with; nothing if it copies no blocks."""
        copies = [group.host.take_copies() for group in self._groups if group.host]
        return copies if any(of_group.out or of_group.into for of_group in copies) else []

    def seconds_to_copy(self, num_tokens: int) -> float:
        """What it takes to copy the blocks of so many tokens."""
        return num_tokens / self.block_size * self._host.seconds_of_block if self._host else 0.0

    # ------------------------------------------------------------------ snapshots of states

    def snapshot_of(self, request: Request, num_cached: int) -> int | None:
        """The place of the state that a request starts with; see `match`."""
        if not self._snapshots or not num_cached:
            return None
        return self._snapshots.use(request.block_hashes[num_cached // self.block_size - 1])

    def make_snapshot(self, request: Request, num_tokens: int) -> tuple[int, int] | None:
        """Where to make a snapshot if a request's next `num_tokens` are computed; see `SchedulerOutput.snapshots`."""
        if not self._snapshots or not self._may_share(request):
            return None
        count = self._num_before_snapshot(request)
        if not request.num_computed_tokens < count * self.block_size <= request.num_computed_tokens + num_tokens:
            return None
        self._extend_hashes(request, count * self.block_size)
        place = self._snapshots.make(request.block_hashes[count - 1])
        return None if place is None else (count * self.block_size, place)

    def _num_before_snapshot(self, request: Request) -> int:
        """Full blocks of what a request was admitted with, less the last token, which its twin has to compute."""
        return (request.num_admitted_tokens - 1) // self.block_size

    # ------------------------------------------------------------------ room

    def holds(self, num_tokens: int) -> bool:
        """Whether one request of so many tokens fits when it runs alone."""
        count = self.num_blocks(num_tokens)
        return all(group.most_held(count) <= group.pool.num_blocks for group in self._groups)

    def promised(self, running: Iterable[Request]) -> list[int]:
        """Of each group, blocks that running prompts still lack: a newcomer that took them would soon be preempted."""
        needs = [(request, self.num_blocks(len(request.token_ids))) for request in running]
        return [
            sum(max(0, group.most_held(count) - request.num_held_blocks(index)) for request, count in needs)
            for index, group in enumerate(self._groups)
        ]

    def num_to_encode(self, request: Request) -> int:
        """Places of its input that an encoder has to read before a request can start."""
        return 0 if self.cross is None or self.cross.is_cached(request) else request.num_source_tokens

    def has_room(self, request: Request, num_cached: int = 0, promised: Iterable[int] = repeat(0)) -> bool:
        """Whether a request that holds nothing could have all of its tokens computed, beside what is promised."""
        if self.cross is not None and not self.cross.has_room(request):
            return False
        count = self.num_blocks(len(request.token_ids))
        hashes = request.block_hashes[: num_cached // self.block_size]
        for group, taken in zip(self._groups, promised, strict=False):
            cached = group.cached_blocks(hashes)
            needed = group.most_held(count) - len(cached) + group.pool.num_unused(cached)
            if max(0, needed) + taken > group.pool.num_available:
                return False
        return True

    def has_room_to_grow(self, request: Request, num_tokens: int) -> bool:
        """Whether a running request's tables can be made long enough for `num_tokens`."""
        missing = self.num_blocks(num_tokens) - request.num_blocks
        return all(missing <= group.pool.num_available for group in self._groups)

    # ------------------------------------------------------------------ a request's blocks

    def start(self, request: Request, num_cached: int) -> int:
        """Give a request that holds nothing the cached blocks that it starts with (see `match`), and room for its
        encoder's output.

        Returns how many of its tokens come from host memory.
        """
        if self.cross is not None:
            self.cross.start(request)
        count = num_cached // self.block_size
        request.block_tables, request.first_blocks = [], []
        num_copied = 0
        for group in self._groups:
            blocks, copied = group.start(request.block_hashes[:count])
            num_copied = max(num_copied, copied)
            request.first_blocks.append(count - len(blocks))
            request.block_tables.append([0] * (count - len(blocks)) + blocks)
        request.num_slots = num_cached if self._groups else sys.maxsize
        request.num_computed_tokens = num_cached
        request.num_registered_blocks = count
        following = request.block_hashes[count : self._num_before_snapshot(request)]
        self._being_computed.update(following[-1:] if self._snapshots else request.block_hashes[count:])
        return num_copied * self.block_size

    def grow(self, request: Request, num_tokens: int) -> list[list[int]] | None:
        """Make a request's tables long enough for `num_tokens`; None if there is no room.

        Returns the blocks that were appended, for each group: nothing if none had to be. Blocks that the request
        does not need any more are given back when others have to be appended.
        """
        if num_tokens <= request.num_slots:
            return []
        missing = self.num_blocks(num_tokens) - request.num_blocks
        self._give_back(request)
        if not self.has_room_to_grow(request, num_tokens):
            return None
        appended = [group.pool.allocate(missing) for group in self._groups]
        for table, blocks in zip(request.block_tables, appended, strict=True):
            table += blocks
        request.num_slots += missing * self.block_size
        return appended

    def _give_back(self, request: Request) -> None:
        """Free the blocks behind windows. Steps run in order: those in flight read them before others write."""
        for index, group in enumerate(self._groups):
            first, needed = request.first_blocks[index], group.first_needed(request.num_computed_tokens)
            if needed > first:
                self.commit(request)
                group.pool.free(request.block_tables[index][first:needed])
                request.first_blocks[index] = needed

    def commit(self, request: Request) -> None:
        """Tell the prefix cache of blocks that have become full.

        Blocks that the step in flight fills count too: whoever shares them reads them in a later step.
        """
        if not self.prefix_caching or request.status is not RequestStatus.RUNNING:
            return
        known = min(request.num_computed_tokens, len(request.token_ids))
        if known // self.block_size <= request.num_registered_blocks:
            return
        self._extend_hashes(request, known)
        for index in range(request.num_registered_blocks, known // self.block_size):
            block_hash = request.block_hashes[index]
            for group, table, first in zip(self._groups, request.block_tables, request.first_blocks, strict=True):
                if index >= first:
                    group.pool.prefix_cache.insert(block_hash, table[index])
            self._being_computed.discard(block_hash)
        request.num_registered_blocks = known // self.block_size

    def free(self, request: Request) -> None:
        """Take a request's blocks back. If it wishes so, they stay in the cache for a time."""
        if self.cross is not None:
            self.cross.free(request)
        seconds = request.cache_retention
        wish = Wish(self._now + seconds, request.tenant, request.weight) if seconds > 0 else None
        self._being_computed.difference_update(request.block_hashes[request.num_registered_blocks :])
        for group, table, first in zip(self._groups, request.block_tables, request.first_blocks, strict=True):
            group.pool.free(table[first:], wish)
        request.block_tables, request.first_blocks = [], []
        request.num_slots = 0
        request.num_computed_tokens = 0
        request.num_registered_blocks = 0

    def forget(self) -> None:
        """Forget what all blocks hold: it may be wrong. Those in use stay in use."""
        for group in self._groups:
            group.pool.clear_prefix_cache()
            if group.host:
                group.host.clear()
        if self.cross is not None:
            self.cross.pool.clear_prefix_cache()
        if self._snapshots:
            self._snapshots.clear()

    def _extend_hashes(self, request: Request, num_tokens: int) -> None:
        """Hash the request's full blocks among its first `num_tokens` tokens, as far as not done before."""
        hashes = request.block_hashes
        for start in range(len(hashes) * self.block_size, num_tokens - self.block_size + 1, self.block_size):
            parent = hashes[-1] if hashes else root_hash(request.cache_salt)
            end = start + self.block_size
            hashes.append(hash_block(parent, request.token_ids[start:end], key_of(request.extras.placed, start, end)))
