"""When a supervised process is started, restarted or given up: decisions without processes.

    PENDING ──started──> STARTING ──answered──> READY
       ^                    │  │                  │
       └────────exited──────┘  └─exited, and      │
       └────────exited──────── never was ready ─> GIVEN_UP
                  (READY: always back to PENDING)

Invariant: a process that never served is not tried again (its first failure is a wrong option or a
model we cannot run, and would only repeat); one that served is restarted for ever, ever slower.
Elsewhere: the processes themselves (supervisor.py).
"""

import enum
from dataclasses import dataclass


class Phase(enum.StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    GIVEN_UP = "given up"


_LEGAL_MOVES = {
    Phase.PENDING: {Phase.STARTING},
    Phase.STARTING: {Phase.READY, Phase.PENDING, Phase.GIVEN_UP},
    Phase.READY: {Phase.PENDING},
    Phase.GIVEN_UP: set[Phase](),
}


@dataclass(frozen=True)
class Backoff:
    """Delays before a restart: `first_s`, doubled each time up to `most_s`, and from the beginning
    again after `reset_after_s` of service."""

    first_s: float = 0.5
    most_s: float = 10.0
    reset_after_s: float = 60.0


@dataclass(frozen=True)
class Restart:
    """Start the process again, `delay_s` from now."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """The process cannot be made to serve; end everything."""


class ChildLife:
    """The life of one supervised process across its restarts."""

    def __init__(self, backoff: Backoff = Backoff()):
        self._backoff = backoff
        self._phase = Phase.PENDING
        self._was_ready = False
        self._next_delay_s = backoff.first_s
        self._ready_since_s = 0.0

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def was_ready(self) -> bool:
        """It has served at least once."""
        return self._was_ready

    def on_started(self) -> None:
        self._move(Phase.STARTING)

    def on_ready(self, *, now_s: float) -> None:
        self._move(Phase.READY)
        self._was_ready = True
        self._ready_since_s = now_s

    def on_exit(self, *, now_s: float) -> Restart | GiveUp:
        if not self._was_ready:
            self._move(Phase.GIVEN_UP)
            return GiveUp()
        was_long_ready = (
            self._phase is Phase.READY
            and now_s - self._ready_since_s >= self._backoff.reset_after_s
        )
        self._move(Phase.PENDING)
        delay_s = self._backoff.first_s if was_long_ready else self._next_delay_s
        self._next_delay_s = min(2 * delay_s, self._backoff.most_s)
        return Restart(delay_s)

    def _move(self, phase: Phase) -> None:
        assert phase in _LEGAL_MOVES[self._phase], f"{self._phase} -> {phase}"
        self._phase = phase
