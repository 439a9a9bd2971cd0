"""The block pool against a model of it: a plain list of who holds what."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.block_pool import BlockPool
from app.engine.prefix_cache import hash_block, root_hash
from app.engine.retention import RetainedBlocks, Wish

NUM_BLOCKS = 6
actions = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "free", "keep", "register"]), st.integers(0, 7)), max_size=80
)


@given(actions)
@settings(max_examples=300, deadline=None)
def test_blocks_are_never_lost_nor_given_twice(actions: list[tuple[str, int]]) -> None:
    pool = BlockPool(NUM_BLOCKS)
    tables: list[list[int]] = []
    contents: dict[int, bytes] = {}  # what a block was registered to hold
    for action, number in actions:
        if action == "allocate" and number <= pool.num_available:
            blocks = pool.allocate(number)
            held = {block for table in tables for block in table}
            assert len(set(blocks)) == number
            assert not held & set(blocks)
            for block in blocks:  # it may be overwritten now
                contents.pop(block, None)
            tables.append(blocks)
        elif action == "register" and tables:
            for block in tables[number % len(tables)]:
                value = root_hash(f"{block}")
                pool.prefix_cache.insert(value, block)
                contents[block] = value
        elif action == "share" and contents:
            block, value = sorted(contents.items())[number % len(contents)]
            assert pool.prefix_cache.block(value) == block
            pool.share([block])
            tables.append([block])
        elif action in ("free", "keep") and tables:
            wish = Wish(float(number), "ab"[number % 2], 1.0) if action == "keep" else None
            pool.free(tables.pop(number % len(tables)), wish)
        held = {block for table in tables for block in table}
        assert pool.num_used == len(held)
        assert pool.num_available + pool.num_used == NUM_BLOCKS
        # Whatever is known to be cached can still be found: nothing else evicts but allocation.
        assert all(pool.prefix_cache.block(value) == block for block, value in contents.items())


def test_the_least_recently_used_block_is_evicted_first() -> None:
    pool = BlockPool(3)
    values = [root_hash(name) for name in "abc"]
    for value in values:
        (block,) = pool.allocate(1)
        pool.prefix_cache.insert(value, block)
        pool.free([block])
    pool.share([pool.prefix_cache.block(values[0])])  # "a" is used again
    pool.allocate(1)
    known = [pool.prefix_cache.block(value) is not None for value in values]
    assert known == [True, False, True]


def test_equal_tokens_after_different_beginnings_are_different_blocks() -> None:
    first = hash_block(root_hash(""), [1, 2])
    assert hash_block(first, [3, 4]) != hash_block(hash_block(root_hash(""), [9, 9]), [3, 4])
    assert hash_block(first, [3, 4]) == hash_block(hash_block(root_hash(""), [1, 2]), [3, 4])


def test_retained_blocks_go_last_and_no_tenant_keeps_more_than_its_share() -> None:
    pool = BlockPool(12)

    def use(count: int, wish: Wish | None) -> list[int]:
        """Blocks that hold something, and are not in use any more."""
        blocks = pool.allocate(count)
        for block in blocks:
            pool.prefix_cache.insert(root_hash(f"{count} {block} {wish}"), block)
        pool.free(blocks, wish)
        return blocks

    greedy = use(6, Wish(100.0, "a", 1.0))
    assert pool.num_retained == 6  # half of the pool, for a tenant that is alone
    use(6, None)
    other = use(2, Wish(50.0, "b", 0.5))
    assert pool.num_retained == 6  # two of "a" were given up for these
    kept = [block for block in greedy + other if block in pool._retained._wishes]
    assert len(kept) == 6
    assert set(other) <= set(kept)
    assert set(pool.allocate(6)).isdisjoint(kept)  # others are evicted, however short their time was
    pool.expire(50.0)
    assert (pool.num_retained, pool.num_cached) == (4, 2)
    assert set(pool.allocate(2)) == set(other)
    assert set(pool.allocate(4)) == set(kept) - set(other)  # nothing is reserved
    assert pool.num_available == 0


def test_a_wish_whose_time_has_passed_while_its_block_was_used_counts_no_more() -> None:
    pool = BlockPool(4)
    old, hot = pool.allocate(2)
    for block in (old, hot):
        pool.prefix_cache.insert(bytes([block]), block)
    pool.share([hot])
    pool.free([hot], Wish(10.0, "a", 1.0))
    pool.expire(20.0)
    pool.free([old])
    pool.free([hot])  # used last, so evicted last
    assert (pool.num_retained, pool.num_cached) == (0, 2)
    assert pool.allocate(4)[2:] == [old, hot]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.floats(0, 9)), max_size=60))
def test_retained_blocks_are_shared_by_weight(wishes: list[tuple[int, str, float]]) -> None:
    """Who gives up a block has most for its weight; and whoever had less than its share loses none."""
    retained, weights = RetainedBlocks(4), {"a": 1.0, "b": 1.0, "c": 2.0}
    held: dict[int, str] = {}
    for number, (block, tenant, until) in enumerate(wishes):
        if block in held:
            retained.remove(block)
            del held[block]
            continue
        given_up = retained.add(block, Wish(until, tenant, weights[tenant]))
        held[block] = tenant
        if given_up is not None:
            assert len(held) == 5
            counts = Counter(held.values())
            assert counts[held[given_up]] / weights[held[given_up]] == max(counts[t] / weights[t] for t in counts)
            del held[given_up]
        if number % 7 == 6:
            for old in retained.expired(4.0):
                del held[old]
        assert len(retained) == len(held) <= 4
