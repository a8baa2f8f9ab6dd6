"""The worker longest unused: a strict rotation that survives workers coming and going."""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, Field
from baton.router.policies.request import RoutedRequest


class RoundRobin:
    def choose(
        self,
        request: RoutedRequest,
        field: Field,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        worker_id = field.roster.longest_unused(excluded)
        return Choice(worker_id, "turn") if worker_id else None
