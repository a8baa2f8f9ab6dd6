"""The breakers of all workers, and which of them time is about to change.

Invariant: `on_change` is called whenever a worker begins or ceases to be admitted; what time alone
changes is noticed at the next `catch_up`, at a cost that does not grow with the number of workers.
Elsewhere: one breaker's moves, pure (breaker.py).
"""

from collections.abc import Callable, Iterable

from baton.router.breaker import (
    CLOSED,
    Breaker,
    BreakerPhase,
    BreakerRules,
    Outcome,
    admits,
    after_admission,
    after_outcome,
    as_of,
)
from baton.router.policies.ordered import OrderedIds


class Breakers:
    def __init__(
        self,
        rules: BreakerRules,
        on_change: Callable[[str, bool], None],
        on_move: Callable[[str, BreakerPhase], None] = lambda _worker_id, _phase: None,
    ) -> None:
        """`on_change(worker_id, is_admitted)`; `on_move(worker_id, new phase)`."""
        self.rules = rules
        self._on_change = on_change
        self._on_move = on_move
        self._breakers: dict[str, Breaker] = {}
        self._due = OrderedIds()

    def add(self, worker_id: str) -> None:
        assert worker_id not in self._breakers
        self._breakers[worker_id] = Breaker()

    def remove(self, worker_id: str) -> None:
        del self._breakers[worker_id]
        self._due.discard(worker_id)

    def reset(self, worker_id: str) -> None:
        """Another process answers there now: what was held against the old one is void."""
        self._set(worker_id, Breaker(epoch=self._breakers[worker_id].epoch + 1))

    def of(self, worker_id: str) -> Breaker:
        return self._breakers[worker_id]

    def find(self, worker_id: str) -> Breaker | None:
        return self._breakers.get(worker_id)

    def admits(self, worker_id: str) -> bool:
        return admits(self._breakers[worker_id])

    def catch_up(self, now_s: float) -> None:
        """Let pass what time alone changes; to be called before a choice."""
        while (worker_id := self._due.first()) is not None:
            before = self._breakers[worker_id]
            after = as_of(before, self.rules, now_s)
            if after is before:
                return
            self._set(worker_id, after)

    def admit(self, worker_id: str, now_s: float) -> int:
        """A request goes there; returns what `report` needs. A worker whose breaker admits nobody
        may still get a request that was chosen before: its result will not count."""
        breaker = self._breakers[worker_id]
        if breaker.phase is CLOSED:
            return breaker.epoch
        if not admits(breaker):
            return -1
        admitted = after_admission(breaker, now_s)
        self._set(worker_id, admitted)
        return admitted.epoch

    def report(self, worker_id: str, epoch: int, outcome: Outcome, now_s: float) -> None:
        """How a request ended that was admitted there, exactly once."""
        breaker = self._breakers.get(worker_id)
        if breaker is not None:
            self._set(worker_id, after_outcome(breaker, self.rules, outcome, epoch, now_s))

    def soonest_try_s(self, worker_ids: Iterable[str], now_s: float) -> float:
        """How long until one of these may be tried, for Retry-After."""
        waits_s = [self._change_s(self._breakers[worker_id]) for worker_id in worker_ids]
        return max(0.0, min((s for s in waits_s if s is not None), default=now_s) - now_s)

    def _set(self, worker_id: str, breaker: Breaker) -> None:
        before = self._breakers[worker_id]
        if breaker is before:
            return
        self._breakers[worker_id] = breaker
        change_s = self._change_s(breaker)
        if change_s is None:
            self._due.discard(worker_id)
        else:
            self._due.put(worker_id, change_s)
        if breaker.phase is not before.phase:
            self._on_move(worker_id, breaker.phase)
        if admits(breaker) != admits(before):
            self._on_change(worker_id, admits(breaker))

    def _change_s(self, breaker: Breaker) -> float | None:
        """When time alone changes this breaker."""
        if breaker.phase is BreakerPhase.OPEN:
            return breaker.may_try_s
        if breaker.probe_since_s is not None:
            return breaker.probe_since_s + self.rules.probe_limit_s
        return None

    def check_invariants(self) -> None:
        for worker_id, breaker in self._breakers.items():
            assert (worker_id in self._due) == (self._change_s(breaker) is not None)
            assert breaker.probe_since_s is None or breaker.phase is BreakerPhase.HALF_OPEN
            assert breaker.cool_down_s <= self.rules.max_cool_down_s
        self._due.check_invariants()
