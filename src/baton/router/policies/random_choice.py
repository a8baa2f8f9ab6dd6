"""Any worker, all alike."""

import random
from collections.abc import Collection

from baton.router.policies.choice import Choice, Field
from baton.router.policies.request import RoutedRequest


class RandomChoice:
    def choose(
        self,
        request: RoutedRequest,
        field: Field,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        drawn = field.roster.sample(draw, excluded)
        return Choice(drawn.worker_id, "drawn") if drawn else None
