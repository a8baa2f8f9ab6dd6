"""Time as a parameter: production reads the monotonic clock, tests move their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of monotonic seconds."""

    def now_s(self) -> float: ...


class MonotonicClock:
    """The system's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


class FakeClock:
    """A clock for tests: stands still until `advance` moves it."""

    def __init__(self, now_s: float = 0.0):
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
