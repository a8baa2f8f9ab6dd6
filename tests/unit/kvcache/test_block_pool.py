"""The books of the block pool balance, whatever is done in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.kvcache.block_hash import extend_hashes
from baton.kvcache.block_pool import BlockPool

NUM_BLOCKS = 12


class PoolMachine(RuleBasedStateMachine):
    """Random holders allocate, share, seal, rename and release."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[str] = []
        self.num_holders = 0
        self.hashes: list[bytes] = []
        extend_hashes(self.hashes, list(range(40)), 4)

    @rule(num_blocks=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, num_blocks: int) -> None:
        holder = f"h{self.num_holders}"
        self.num_holders += 1
        available = self.pool.num_available
        blocks = self.pool.allocate(holder, num_blocks)
        assert (blocks is None) == (num_blocks > available)
        if blocks is not None:
            assert len(set(blocks)) == num_blocks
            self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        for block, block_hash in zip(self.pool.held_by(holder), self.hashes, strict=False):
            self.pool.seal(block, block_hash)

    @rule(length=st.integers(1, 10))
    def share(self, length: int) -> None:
        holder = f"h{self.num_holders}"
        self.num_holders += 1
        self.pool.share(holder, self.pool.lookup(self.hashes[:length]))
        self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.release(holder)
        self.pool.release(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.rename(holder, f"quarantine:{holder}")
        self.holders.append(f"quarantine:{holder}")

    @rule()
    def flush(self) -> None:
        num_cached = self.pool.num_cached
        assert self.pool.flush() == num_cached
        assert self.pool.num_cached == 0

    @invariant()
    def books_balance(self) -> None:
        self.pool.check_invariants()
        pool = self.pool
        assert pool.num_free + pool.num_cached + pool.num_in_use == NUM_BLOCKS

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.release(holder)
        self.pool.check_invariants()
        assert self.pool.num_in_use == 0


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase


def test_a_released_prefix_is_found_again() -> None:
    pool = BlockPool(4)
    hashes: list[bytes] = []
    extend_hashes(hashes, list(range(8)), 4)
    blocks = pool.allocate("a", 2)
    assert blocks is not None
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.seal(block, block_hash)
    pool.release("a")
    assert pool.lookup(hashes) == blocks
    assert (pool.num_free, pool.num_cached, pool.num_in_use) == (2, 2, 0)


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3)
    hashes: list[bytes] = []
    extend_hashes(hashes, list(range(12)), 4)
    blocks = pool.allocate("a", 3)
    assert blocks is not None
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.seal(block, block_hash)
    pool.release("a")
    pool.allocate("b", 1)
    assert pool.lookup(hashes) == blocks[:2]


def test_a_disabled_prefix_cache_keeps_nothing() -> None:
    pool = BlockPool(2, enable_prefix_cache=False)
    hashes: list[bytes] = []
    extend_hashes(hashes, list(range(4)), 4)
    blocks = pool.allocate("a", 1)
    assert blocks is not None
    pool.seal(blocks[0], hashes[0])
    pool.release("a")
    assert pool.lookup(hashes) == []
    assert pool.num_free == 2


def test_different_salts_share_nothing() -> None:
    one: list[bytes] = []
    other: list[bytes] = []
    extend_hashes(one, [1, 2, 3, 4], 4, salt="tenant-a")
    extend_hashes(other, [1, 2, 3, 4], 4, salt="tenant-b")
    assert one != other
