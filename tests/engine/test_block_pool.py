"""The block pool against a model of it: a plain list of who holds what."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.block_pool import BlockPool
from app.engine.prefix_cache import hash_block, root_hash

NUM_BLOCKS = 6
actions = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "free", "register"]), st.integers(0, 7)), max_size=80
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
        elif action == "free" and tables:
            pool.free(tables.pop(number % len(tables)))
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
