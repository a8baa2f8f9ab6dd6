"""Streams that have fallen silent: their connection stands, but no event comes any more. Pure.

A stream counts as silent after as many looks without a new event as make up the limit, so that an
event costs an addition and no timer. A worker is silent when all of its streams are.
Elsewhere: who looks and what follows (legs.py), workers that answer no health checks (fleet.py).
"""

from collections.abc import Hashable, Iterable
from typing import Final, Generic, Protocol, TypeVar

NUM_LOOKS: Final = 4
"""Within the limit; a silent stream is noticed after the limit and at most a quarter more."""


class Stream(Hashable, Protocol):
    @property
    def num_events_seen(self) -> int | None:
        """Runs of events so far; None where silence says nothing."""
        ...


S = TypeVar("S", bound=Stream)


class StallWatch(Generic[S]):
    def __init__(self, num_looks: int = NUM_LOOKS) -> None:
        self._num_looks = num_looks
        self._before: dict[S, tuple[int, int]] = {}

    def look(self, streams: Iterable[S]) -> list[S]:
        """Those that were silent in the last `num_looks` intervals."""
        now: dict[S, tuple[int, int]] = {}
        for stream in streams:
            num = stream.num_events_seen
            if num is not None:
                num_before, num_quiet = self._before.get(stream, (-1, 0))
                now[stream] = (num, num_quiet + 1 if num == num_before else 0)
        self._before = now
        return [stream for stream, (_, num_quiet) in now.items() if num_quiet >= self._num_looks]

    @property
    def last_seen(self) -> Iterable[S]:
        """The streams of the last look, silent or not."""
        return self._before
