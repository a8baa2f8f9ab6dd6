"""What a policy decides on and how it answers.

Elsewhere: the policies, one per file; putting one together from the flags (__init__.py).
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import msgspec

from baton.router.policies.prefix_index import PrefixIndex
from baton.router.policies.request import RoutedRequest
from baton.router.policies.roster import Roster
from baton.router.policies.speeds import Speeds


@dataclass(frozen=True, slots=True)
class RoleState:
    """All that is known of the workers of one role; `speeds` is shared by all roles.
    `has_streams`: the workers' tokens are mostly those of running streams."""

    roster: Roster
    prefixes: PrefixIndex
    speeds: Speeds
    has_streams: bool = False


class Choice(msgspec.Struct, frozen=True, gc=False):
    """`reason` is one of few words, for metrics and for people."""

    worker_id: str
    reason: str


class Policy(Protocol):
    """Depends on its arguments only; chance enters through `draw`."""

    def choose(
        self,
        request: RoutedRequest,
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        """A usable worker that is not excluded; None if there is none."""
        ...
