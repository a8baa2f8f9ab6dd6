"""The less loaded of two drawn workers.

Nearly as even as the least loaded, and several routers that do not know of each other's requests
do not all run to the same worker.
"""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest


class PowerOfTwo:
    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        first = state.roster.sample(draw, excluded)
        if first is None:
            return None
        second = state.roster.sample(draw, {*excluded, first.worker_id}) or first
        better = second if second.is_less_than(first) else first
        return Choice(better.worker_id, "less_of_two")
