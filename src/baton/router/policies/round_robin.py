"""The worker longest unused: a strict rotation that survives workers coming and going."""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest


class RoundRobin:
    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        worker_id = state.roster.longest_unused(excluded)
        return Choice(worker_id, "turn") if worker_id else None
