"""Which workers have lately been sent which beginnings of prompts, so that they may have their KV.

An approximation from what this router sent: workers evict by themselves, and other routers'
requests are not in it. The name of a longer beginning is forgotten before those of shorter ones.
Invariant: at most `max_hashes` hashes, each with at most MAX_HOLDERS workers.
Elsewhere: making the hashes (router/prompt_shape.py), deciding by them (cache_aware.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from baton.router.policies.request import PrefixHash

MAX_HOLDERS = 16
"""Workers remembered per hash: a system prompt that all have needs no list of all."""


class PrefixIndex:
    """Workers are kept as numbers that end with `forget`, so that forgetting touches no hash."""

    def __init__(self, max_hashes: int) -> None:
        assert max_hashes >= 1
        self._max_hashes = max_hashes
        self._holders: OrderedDict[PrefixHash, tuple[int, ...]] = OrderedDict()
        self._number_of: dict[str, int] = {}
        self._worker_of: dict[int, str] = {}
        self._num_numbers = 0

    def __len__(self) -> int:
        return len(self._holders)

    def note(self, hashes: Sequence[PrefixHash], worker_id: str) -> None:
        """A prompt with these hashes goes to this worker. The longest first: the shortest is then
        the latest used, and evicted last."""
        number = self._number(worker_id)
        holders = self._holders
        for hash_ in reversed(hashes):
            known = holders.get(hash_)
            if known is None:
                holders[hash_] = (number,)
                continue
            holders.move_to_end(hash_)
            if known[-1] != number:
                others = tuple(n for n in known if n != number and n in self._worker_of)
                holders[hash_] = (*others[1 - MAX_HOLDERS :], number)
        while len(holders) > self._max_hashes:
            holders.popitem(last=False)

    def forget(self, worker_id: str) -> None:
        """The worker left or began anew: what it had is gone."""
        number = self._number_of.pop(worker_id, None)
        if number is not None:
            del self._worker_of[number]

    def longest_match(
        self, hashes: Sequence[PrefixHash], is_usable: Callable[[str], bool]
    ) -> tuple[int, list[str]]:
        """How many hashes of the prompt the best usable workers have, and who they are, in
        O(log hashes): who has a longer beginning has the shorter ones, too."""
        best: tuple[int, list[str]] = (0, [])
        low, high = 1, len(hashes)
        while low <= high:
            middle = (low + high) // 2
            usable = [worker for worker in self._workers(hashes[middle - 1]) if is_usable(worker)]
            if usable:
                best, low = (middle, usable), middle + 1
            else:
                high = middle - 1
        return best

    def num_hits(self, hashes: Sequence[PrefixHash], worker_id: str) -> int:
        """How many hashes of the prompt this worker has."""
        number, holders = self._number_of.get(worker_id), self._holders
        if number is None:
            return 0
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high + 1) // 2
            if number in holders.get(hashes[middle - 1], ()):
                low = middle
            else:
                high = middle - 1
        return low

    def _workers(self, hash_: PrefixHash) -> list[str]:
        worker_of = self._worker_of
        return [worker_of[n] for n in self._holders.get(hash_, ()) if n in worker_of]

    def _number(self, worker_id: str) -> int:
        number = self._number_of.get(worker_id)
        if number is None:
            self._num_numbers += 1
            number = self._number_of[worker_id] = self._num_numbers
            self._worker_of[number] = worker_id
        return number

    def check_invariants(self) -> None:
        assert len(self._holders) <= self._max_hashes
        assert all(len(holders) <= MAX_HOLDERS for holders in self._holders.values())
        assert {self._worker_of[n]: n for n in self._worker_of} == self._number_of
