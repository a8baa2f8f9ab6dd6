"""Counting every choice of a worker, at the cost of an addition.

Elsewhere: why not by prometheus_client's counters, and what requests count in (exchange_tally.py).
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from baton.router.config import WorkerRole
from baton.router.policies import PolicyName


class ChoiceTally(Collector):
    """`policy_for` is told by whoever chooses."""

    def __init__(self) -> None:
        self.policy_for: Callable[[WorkerRole], PolicyName]
        self._chosen: dict[tuple[WorkerRole, str], int] = {}

    def note(self, role: WorkerRole, reason: str) -> None:
        key = (role, reason)
        self._chosen[key] = self._chosen.get(key, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        choices = CounterMetricFamily(
            "baton_router_choices",
            "Workers chosen, by role, policy and the policy's reason.",
            labels=["role", "policy", "reason"],
        )
        for (role, reason), num in self._chosen.items():
            choices.add_metric([role.value, self.policy_for(role).value, reason], num)
        yield choices
