"""What the router remembers of the last requests: when, where to, why, and how it ended.

One small struct is kept for each request, when it ends; it is made readable only when somebody
asks.
Elsewhere: who asks (explaining.py), a worker's part of it (api/explaining.py).
"""

from collections.abc import Iterator
from typing import Optional

import msgspec

from baton.core.timeline import Timeline
from baton.router.config import WorkerRole
from baton.router.plan import Plan
from baton.router.workers import Worker


class Attempt(msgspec.Struct, gc=False):
    """Where a request was sent, and where before that."""

    at_s: float
    plan: Plan
    before: Optional["Attempt"]


class Journey(msgspec.Struct, gc=False):
    """One request. `first_byte_s`: of the answer, None where there was none; `end_s` None: it
    runs."""

    request_id: str
    route: str
    started_s: float
    attempt: Attempt | None
    first_byte_s: float | None
    end_s: float | None = None
    status: int = 0
    reason: str = ""

    @property
    def attempts(self) -> list[Attempt]:
        """Oldest first."""
        return list(_back_from(self.attempt))[::-1]

    def timeline(self) -> Timeline:
        """In the form that workers have, too."""
        timeline = Timeline.begin(self.request_id, "queue", self.started_s, self.route)
        moves = [(attempt.at_s, self._name_of(attempt), _placed(attempt)) for attempt in
                 self.attempts]  # fmt: skip
        if self.first_byte_s is not None:
            moves.append((self.first_byte_s, "answer", ""))
        for at_s, name, why in sorted(moves, key=lambda move: move[0]):
            timeline.enter(name, at_s, why)
        if self.end_s is not None:
            outcome = f"HTTP {self.status}"
            timeline.end(self.end_s, f"{outcome}: {self.reason}" if self.reason else outcome)
        return timeline

    def _name_of(self, attempt: Attempt) -> str:
        if attempt.before is None:
            return "placed"
        was_answering = self.first_byte_s is not None and self.first_byte_s < attempt.at_s
        return "resumed" if was_answering else "placed again"


def _back_from(attempt: Attempt | None) -> Iterator[Attempt]:
    while attempt is not None:
        yield attempt
        attempt = attempt.before


def _placed(attempt: Attempt) -> str:
    plan = attempt.plan
    placed = [
        f"{_role(worker)} {worker.url} ({why})"
        for worker, why in zip(plan.workers, plan.policy_reasons, strict=True)
    ]
    text = ", ".join(placed)
    return text if plan.split_reason is None else f"{text}; {plan.split_reason.value}"


def _role(worker: Worker) -> str:
    return "unified" if worker.role is WorkerRole.REGULAR else worker.role.value
