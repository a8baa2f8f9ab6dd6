"""The worker that was sent the longest beginning of this prompt, unless it is far too busy.

SGLang's thresholds, with two differences: the load compared is that of the worker which has the
prefix, not of the busiest one anywhere; and a prompt nobody knows goes to the least loaded worker.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest
from baton.router.policies.roster import Load


@dataclass(frozen=True)
class CacheRules:
    """`threshold`: share of the prompt that must match. A worker is too busy if it has more than
    `balance_abs` requests more, and more than `balance_rel` times as many, as the least loaded."""

    threshold: float = 0.3
    balance_abs: int = 64
    balance_rel: float = 1.5
    max_hashes: int = 131072


class CacheAware:
    def __init__(self, rules: CacheRules) -> None:
        self._rules = rules

    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        roster, hashes = state.roster, request.prefix_hashes
        least = roster.least_loaded(excluded)
        if least is None:
            return None
        if not hashes:
            return Choice(least, "no_prefix")
        num_hits, holders = state.prefixes.longest_match(
            hashes, lambda worker_id: worker_id in roster and worker_id not in excluded
        )
        if not holders or num_hits < self._rules.threshold * len(hashes):
            return Choice(least, "cache_miss")
        best = _less_loaded([roster.load_of(worker_id) for worker_id in holders])
        if self._is_too_busy(best, roster.load_of(least)):
            return Choice(least, "balance")
        return Choice(best.worker_id, "cache_hit")

    def _is_too_busy(self, best: Load, least: Load) -> bool:
        rules = self._rules
        more = best.total_requests - least.total_requests
        return more > rules.balance_abs and (
            best.total_requests > rules.balance_rel * least.total_requests
        )


def _less_loaded(loads: list[Load]) -> Load:
    return min(loads, key=lambda load: (load.weight, load.last_use))
