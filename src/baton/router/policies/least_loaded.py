"""The worker with the fewest tokens in flight, ours and reported ones.

A request weighs a little beside its tokens. Our own count is exact and immediate; reports add only
what is not ours, so that many requests between two reports do not all run to the same worker.
"""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest


class LeastLoaded:
    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        worker_id = state.roster.least_loaded(excluded)
        return Choice(worker_id, "least_loaded") if worker_id else None
