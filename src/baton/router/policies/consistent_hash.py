"""A session always at the same worker, as long as it is there; without a key, the least loaded."""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest


class ConsistentHash:
    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        roster = state.roster
        if request.session_key is None:
            least = roster.least_loaded(excluded)
            return Choice(least, "no_session") if least else None
        worker_id = roster.ring.find(
            request.session_key, lambda member: member in roster and member not in excluded
        )
        return Choice(worker_id, "session") if worker_id else None
