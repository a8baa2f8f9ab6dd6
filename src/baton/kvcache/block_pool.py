"""Ownership of KV blocks: who holds each one, and when it may be used again.

A block is *in use* while at least one holder has it, *cached* when nobody holds it but its content
is known by hash, else *free*. Cached blocks are given out again, least recently used first, when
the free ones run out. Full blocks can be shared by several holders; only a block's first holder
writes to it, and only before it is sealed.

Invariant: num_free + num_cached + num_in_use == num_blocks after every call.
Elsewhere: bytes (storage.py), hashes (block_hash.py), moving blocks between workers (transfer/).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from baton.kvcache.block_hash import BlockHash


class BlockPool:
    """Bookkeeping of `num_blocks` blocks. Holders are named by strings, e.g. a request id."""

    def __init__(self, num_blocks: int, *, enable_prefix_cache: bool = True):
        self.num_blocks = num_blocks
        self._enable_prefix_cache = enable_prefix_cache
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_count = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._held: dict[str, list[int]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give out now."""
        return len(self._free) + len(self._cached)

    def holders(self) -> dict[str, list[int]]:
        """The ledger: every holder with its blocks."""
        return {holder: list(blocks) for holder, blocks in self._held.items()}

    def held_by(self, holder: str) -> list[int]:
        return list(self._held.get(holder, ()))

    def allocate(self, holder: str, num_blocks: int) -> list[int] | None:
        """Give `holder` that many fresh blocks, or None (and change nothing) when they are not
        there. Their content is undefined."""
        if num_blocks > self.num_available:
            return None
        blocks = [self._take_one() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_count[block] = 1
        if blocks:
            self._held.setdefault(holder, []).extend(blocks)
        return blocks

    def lookup(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Blocks of the longest known prefix of this hash chain. Takes no hold."""
        found: list[int] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, holder: str, blocks: Sequence[int]) -> None:
        """Let `holder` hold blocks that `lookup` found, too."""
        for block in blocks:
            if self._ref_count[block] == 0:
                del self._cached[block]
            self._ref_count[block] += 1
        if blocks:
            self._held.setdefault(holder, []).extend(blocks)

    def seal(self, block: int, block_hash: BlockHash) -> None:
        """Say that a held block is full and its content is final. A second block with the same
        content stays unnamed: the first one serves later hits."""
        assert self._ref_count[block] > 0, f"block {block} is sealed but nobody holds it"
        if not self._enable_prefix_cache or self._hash_of[block] is not None:
            return
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def release(self, holder: str) -> None:
        """Drop all holds of `holder`. Idempotent."""
        # Tails first: a prefix is worth more than what follows it, so it is evicted later.
        for block in reversed(self._held.pop(holder, [])):
            self._ref_count[block] -= 1
            assert self._ref_count[block] >= 0, f"block {block} was released twice"
            if self._ref_count[block] > 0:
                continue
            if self._hash_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def rename(self, old: str, new: str) -> None:
        """Hand all holds of one holder to another name, e.g. into quarantine."""
        blocks = self._held.pop(old, [])
        if blocks:
            self._held.setdefault(new, []).extend(blocks)

    def flush(self) -> int:
        """Forget every cached prefix; blocks in use stay but can no longer be hit. Returns how many
        blocks became free."""
        num_flushed = len(self._cached)
        self._free.extend(self._cached)
        self._cached.clear()
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks
        return num_flushed

    def check_invariants(self) -> None:
        """Raise AssertionError where the books do not balance. For tests; walks everything."""
        counted = [0] * self.num_blocks
        for block in _chain(self._held.values()):
            counted[block] += 1
        assert counted == self._ref_count, "reference counts differ from the ledger"
        free, cached = set(self._free), set(self._cached)
        in_use = {block for block, count in enumerate(counted) if count}
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached
        assert not (free | cached) & in_use
        assert len(free) + len(cached) + len(in_use) == self.num_blocks
        assert all(self._hash_of[block] is not None for block in cached)
        assert all(self._hash_of[block] is None for block in free)
        for block_hash, block in self._block_of.items():
            assert self._hash_of[block] == block_hash

    def _take_one(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hash_of[block]
        assert block_hash is not None
        del self._block_of[block_hash]
        self._hash_of[block] = None
        return block


def _chain(lists: Iterable[list[int]]) -> Iterable[int]:
    for one in lists:
        yield from one
