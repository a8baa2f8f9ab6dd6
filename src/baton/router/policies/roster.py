"""The workers of one role that may take requests now, and how loaded each is.

Invariant: a worker's load is the sum of what this router has there and of what others were last
reported to have; every structure here is kept up with what has changed since the choice before, so
that no choice has to look at all workers.
Elsewhere: who may take requests (workers.py, breaker.py), choosing (the other files here).
"""

import random
from collections.abc import Collection, Iterator

from baton.router.policies.ordered import OrderedIds
from baton.router.policies.ring import HashRing

TOKENS_PER_REQUEST = 64
"""What a request weighs beside its tokens, so that many short ones count as load, too."""

_MAX_DRAWS = 8


class Load:
    """One worker's load. Changed by Roster only.

    `num_tokens`: tokens of the requests this router has there. `num_pending`: those of them that
    are prompts still to be computed. `foreign_*`: what the worker reported beyond ours (other
    routers, direct clients). `last_use` grows with every dispatch in
    the roster, 0 if never used.
    """

    __slots__ = ("foreign_requests", "foreign_tokens", "last_use", "num_pending", "num_requests",
                 "num_tokens", "place", "worker_id")  # fmt: skip

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.num_requests = 0
        self.num_tokens = 0
        self.num_pending = 0
        self.foreign_requests = 0
        self.foreign_tokens = 0
        self.last_use = 0
        self.place = -1

    @property
    def total_requests(self) -> int:
        return self.num_requests + self.foreign_requests

    @property
    def total_tokens(self) -> int:
        return self.num_tokens + self.foreign_tokens

    @property
    def weight(self) -> int:
        """Load as one number, in tokens."""
        num_requests = self.num_requests + self.foreign_requests
        return self.num_tokens + self.foreign_tokens + TOKENS_PER_REQUEST * num_requests

    def is_less_than(self, other: "Load") -> bool:
        """Between equals the one longest unused, so that idle workers take turns."""
        mine, theirs = self.weight, other.weight
        return mine < theirs or (mine == theirs and self.last_use < other.last_use)


class Roster:
    """Loads are kept of every worker that was added, also of those that may not be used now; so
    is their place on the ring."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._usable: list[Load] = []
        self._by_load = OrderedIds()
        self._by_turn = OrderedIds()
        self._moved: dict[str, Load] = {}
        self._num_uses = 0
        self.ring = HashRing()

    def __len__(self) -> int:
        """Workers that may be used."""
        return len(self._usable)

    def __iter__(self) -> Iterator[Load]:
        return iter(self._usable)

    def __contains__(self, worker_id: str) -> bool:
        load = self._loads.get(worker_id)
        return load is not None and load.place >= 0

    def load_of(self, worker_id: str) -> Load:
        return self._loads[worker_id]

    def add(self, worker_id: str, name: str) -> None:
        """A worker is known, but may not be used yet. `name`: what it keeps when it comes back
        under another id (its URL)."""
        assert worker_id not in self._loads
        self._loads[worker_id] = Load(worker_id)
        self.ring.add(worker_id, name)

    def remove(self, worker_id: str) -> None:
        """A worker is gone for good."""
        self.set_usable(worker_id, False)
        self.ring.discard(worker_id)
        del self._loads[worker_id]

    def set_usable(self, worker_id: str, is_usable: bool) -> None:
        load = self._loads[worker_id]
        if is_usable == (load.place >= 0):
            return
        if is_usable:
            load.place = len(self._usable)
            self._usable.append(load)
            self._moved[worker_id] = load
            return
        last = self._usable.pop()
        if last is not load:
            self._usable[load.place] = last
            last.place = load.place
        load.place = -1
        self._moved.pop(worker_id, None)
        self._by_load.discard(worker_id)
        self._by_turn.discard(worker_id)

    def begin(self, worker_id: str, num_tokens: int, num_pending: int = 0) -> None:
        """A request goes to this worker; `end` must follow exactly once, with the same number of
        tokens and those still pending, unless the worker is removed before."""
        load = self._loads[worker_id]
        self._num_uses += 1
        load.last_use = self._num_uses
        load.num_requests += 1
        load.num_tokens += num_tokens
        load.num_pending += num_pending
        if load.place >= 0:
            self._moved[worker_id] = load

    def note_computed(self, worker_id: str, num_pending: int) -> None:
        """So many tokens of a running request's prompt are pending no more."""
        load = self._loads.get(worker_id)
        if load is not None:
            load.num_pending -= num_pending

    def end(self, worker_id: str, num_tokens: int, num_pending: int = 0) -> None:
        load = self._loads.get(worker_id)
        if load is None:
            return
        load.num_requests -= 1
        load.num_tokens -= num_tokens
        load.num_pending -= num_pending
        assert load.num_requests >= 0, f"{worker_id} has no request to end"
        assert load.num_tokens >= 0, f"{worker_id} has fewer tokens than end"
        if load.place >= 0:
            self._moved[worker_id] = load

    def report(self, worker_id: str, num_requests: int | None, num_tokens: int) -> None:
        """What the worker said that it has in all, now; requests None where it does not say."""
        load = self._loads[worker_id]
        load.foreign_requests = max(0, (num_requests or 0) - load.num_requests)
        has_others = num_requests is None or load.foreign_requests > 0
        load.foreign_tokens = max(0, num_tokens - load.num_tokens) if has_others else 0
        if load.place >= 0:
            self._moved[worker_id] = load

    def forget_report(self, worker_id: str) -> None:
        """The worker went away: what it said before means nothing."""
        load = self._loads[worker_id]
        load.foreign_requests = load.foreign_tokens = 0
        if load.place >= 0:
            self._moved[worker_id] = load

    def least_loaded(self, excluded: Collection[str] = ()) -> str | None:
        if self._moved:
            self._order()
        return self._by_load.first(excluded)

    def least_loaded_few(self, num: int, excluded: Collection[str] = ()) -> list[str]:
        self._order()
        return self._by_load.first_few(num, excluded)

    def longest_unused(self, excluded: Collection[str] = ()) -> str | None:
        self._order()
        return self._by_turn.first(excluded)

    def sample(self, draw: random.Random, excluded: Collection[str] = ()) -> Load | None:
        """A worker drawn uniformly from those that are not excluded."""
        usable = self._usable
        if not usable:
            return None
        for _ in range(_MAX_DRAWS):
            load = usable[int(draw.random() * len(usable))]
            if load.worker_id not in excluded:
                return load
        rest = [load for load in usable if load.worker_id not in excluded]
        return rest[int(draw.random() * len(rest))] if rest else None

    def _order(self) -> None:
        """Put those whose load has changed where they belong: once for all that happened between
        two choices."""
        for worker_id, load in self._moved.items():
            self._by_load.put(worker_id, (load.weight, load.last_use))
            self._by_turn.put(worker_id, load.last_use)
        self._moved.clear()

    def check_invariants(self) -> None:
        assert [load.place for load in self._usable] == list(range(len(self._usable)))
        assert sum(load.place >= 0 for load in self._loads.values()) == len(self._usable)
        assert all(load.place >= 0 for load in self._moved.values())
        self._order()
        assert len(self._by_load) == len(self._by_turn) == len(self._usable)
        for load in self._loads.values():
            assert load.num_requests >= 0
            assert load.num_tokens >= 0
            assert load.num_pending >= 0
            assert load.num_requests or not (load.num_tokens or load.num_pending)
        self._by_load.check_invariants()
        self._by_turn.check_invariants()
