"""Which worker takes the next request: one small file per policy.

A policy sees a RoutedRequest and a RoleState (loads, known beginnings of prompts, measured speeds
of one role's workers) and names a worker. All state is in the RoleState's parts, so that any policy
can be tried against any state; no choice looks at all workers.
Elsewhere: who may be chosen (workers.py, breaker.py), keeping the states (router/placement.py).
"""

from typing import assert_never

from baton.router.policies.cache_aware import CacheAware, CacheRules
from baton.router.policies.choice import Choice, Policy, RoleState
from baton.router.policies.consistent_hash import ConsistentHash
from baton.router.policies.least_loaded import LeastLoaded
from baton.router.policies.names import PolicyName
from baton.router.policies.power_of_two import PowerOfTwo
from baton.router.policies.random_choice import RandomChoice
from baton.router.policies.request import UNKNOWN_REQUEST, RoutedRequest
from baton.router.policies.round_robin import RoundRobin
from baton.router.policies.slo_aware import SloAware

__all__ = [
    "UNKNOWN_REQUEST",
    "CacheRules",
    "Choice",
    "Policy",
    "PolicyName",
    "RoleState",
    "RoutedRequest",
    "make_policy",
]


def make_policy(name: PolicyName, *, computes: bool, cache: CacheRules) -> Policy:
    """`computes`: the role's workers compute prompts (prefill, unified)."""
    match name:
        case PolicyName.RANDOM:
            return RandomChoice()
        case PolicyName.ROUND_ROBIN:
            return RoundRobin()
        case PolicyName.LEAST_LOADED:
            return LeastLoaded()
        case PolicyName.POWER_OF_TWO:
            return PowerOfTwo()
        case PolicyName.CACHE_AWARE:
            return CacheAware(cache)
        case PolicyName.CONSISTENT_HASH:
            return ConsistentHash()
        case PolicyName.SLO_AWARE:
            return SloAware(computes)
        case _:
            assert_never(name)
