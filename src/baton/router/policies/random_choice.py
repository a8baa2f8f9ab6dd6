"""Any worker, all alike."""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.request import RoutedRequest


class RandomChoice:
    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        drawn = state.roster.sample(draw, excluded)
        return Choice(drawn.worker_id, "drawn") if drawn else None
