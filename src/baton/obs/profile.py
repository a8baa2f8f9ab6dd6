"""Collects what a profiled engine does, within a bounded memory.

Whoever can be profiled holds a `Profile` or None, so that nothing is paid while nobody asks. When
it is full the oldest records go and are counted: the newest are what somebody looks for.
Elsewhere: the records (core/profile.py), who starts and stops it (disagg/loop.py).
"""

from collections import deque
from typing import Final

from baton.core.profile import ProfileNotes, StepRecord
from baton.core.timeline import Timeline

MAX_WEIGHT: Final = 120_000
"""A record weighs 4, and 1 for each request in it. In the trace each of those is named in up to 14
spans, so this is some 10,000 steps of 8 requests, and a file of some 70 MB at most."""

_RECORD_WEIGHT: Final = 4


class Profile:
    """`max_steps`: record so many and then no more; None: until it is stopped."""

    def __init__(
        self, start_s: float, max_steps: int | None = None, *, max_weight: int = MAX_WEIGHT
    ):
        self.start_s = start_s
        self._num_left = max_steps
        self._max_weight = max_weight
        self._records: deque[StepRecord | Timeline] = deque()
        self._weight = 0
        self._num_dropped = 0

    @property
    def is_full(self) -> bool:
        """All the steps that were asked for are there."""
        return self._num_left == 0

    def add_step(self, step: StepRecord) -> None:
        if self._num_left is not None:
            if self._num_left == 0:
                return
            self._num_left -= 1
        self._add(step)

    def add_request(self, timeline: Timeline) -> None:
        """A request has ended."""
        if not self.is_full:
            self._add(timeline)

    def notes(self, running: list[Timeline], now_s: float) -> ProfileNotes:
        """All of it; `running` are the requests that have not ended."""
        steps = [record for record in self._records if isinstance(record, StepRecord)]
        ended = [record for record in self._records if isinstance(record, Timeline)]
        end_s = steps[-1].end_s if self.is_full and steps else now_s
        return ProfileNotes(
            start_s=self.start_s,
            end_s=end_s,
            steps=steps,
            requests=[*ended, *running],
            num_dropped=self._num_dropped,
        )

    def _add(self, record: StepRecord | Timeline) -> None:
        self._records.append(record)
        self._weight += _weight_of(record)
        while self._weight > self._max_weight:
            self._weight -= _weight_of(self._records.popleft())
            self._num_dropped += 1


def _weight_of(record: StepRecord | Timeline) -> int:
    if isinstance(record, StepRecord):
        return _RECORD_WEIGHT + len(record.prompts) + len(record.decodes)
    return _RECORD_WEIGHT + len(record.phases) + len(record.chunks)
