"""Which workers failed one request, and when each of them may have it again. Pure.

Others are asked first. Where a role has nobody else, a worker may have it again that came back as
another process, or that has answered a health check since.
Invariant: a worker that failed is not asked again while nothing new is known of it.
Elsewhere: what follows from a failure (dispatch.py), health checks (health.py).
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

from baton.router.config import WorkerRole
from baton.router.workers import Health, Worker

HasUsable = Callable[[WorkerRole, Set[str]], bool]


@dataclass(frozen=True)
class _Setback:
    worker: Worker
    health: Health
    pid: int | None

    @property
    def is_over(self) -> bool:
        """Another process is at its address now."""
        return self.worker.is_healthy and _pid_of(self.worker) != self.pid

    @property
    def has_answered(self) -> bool:
        """Every health check leaves a new record."""
        return self.worker.is_healthy and self.worker.health is not self.health


class Setbacks:
    def __init__(self) -> None:
        self._by_id: dict[str, _Setback] = {}

    def note(self, worker: Worker) -> None:
        """It failed the request just now."""
        self._by_id[worker.id] = _Setback(worker, worker.health, _pid_of(worker))

    def shunned(self, has_usable: HasUsable) -> Set[str]:
        """Who must not have the request now; `has_usable` says whether a role has anybody beside
        those given."""
        avoided = {id_: each for id_, each in self._by_id.items() if not each.is_over}
        return {
            id_
            for id_, each in avoided.items()
            if not each.has_answered or has_usable(each.worker.role, avoided.keys())
        }


def _pid_of(worker: Worker) -> int | None:
    return worker.facts.pid if worker.facts else None
