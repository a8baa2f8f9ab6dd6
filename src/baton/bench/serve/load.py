"""Sending sessions when they are due: in an open loop, or with a bounded number at a time.

An open loop never waits for answers, so a slow server meets the load that it was promised. What it
is late by is noted: `planned_s` of a request is its arrival, or when a place became free for its
session if that was later, or for a later turn when its pause was over.

Invariant: every planned request has one record at the end; turns after one that failed are not
sent, and their records say so.
Elsewhere: one request (exchange.py), when sessions arrive (arrival.py).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from baton.bench.serve.backends import History
from baton.bench.serve.exchange import Sender
from baton.bench.serve.records import NOT_SENT, STOPPED, Record
from baton.bench.serve.sessions import Session

_SEED_STREAM: Final = 4

Places = asyncio.Queue[float]
"""The free places of a closed loop: since when each has been free."""

OnEnd = Callable[[Record], None]


@dataclass(frozen=True)
class Plan:
    """`arrivals_s` and `pauses_s` are parallel to `sessions`; pauses are those before the second
    turn, the third, and so on."""

    sessions: Sequence[Session]
    arrivals_s: Sequence[float]
    pauses_s: Sequence[Sequence[float]]
    max_concurrency: int | None

    @property
    def num_requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)


def draw_pauses(sessions: Sequence[Session], mean_s: float, seed: int) -> list[list[float]]:
    """Exponential pauses of people who read and type."""
    draw = np.random.default_rng((seed, _SEED_STREAM))
    return [
        [float(each) for each in draw.exponential(mean_s, len(session.turns) - 1)]
        for session in sessions
    ]


def _places(number: int) -> Places:
    places = Places()
    for _ in range(number):
        places.put_nowait(0.0)
    return places


class Load:
    """One run of a plan. `on_start` and `on_end` are told of every request."""

    def __init__(
        self,
        plan: Plan,
        sender: Sender,
        *,
        on_start: Callable[[], None] | None = None,
        on_end: OnEnd | None = None,
    ):
        self._plan = plan
        self._sender = sender
        self._on_start = on_start
        self._on_end = on_end
        self._records: list[Record] = []
        self._zero_s = 0.0

    async def run(self) -> list[Record]:
        """All records, in order of session and turn. When it is cancelled, `ended` has those of
        the requests that had ended."""
        limit = self._plan.max_concurrency
        places = _places(limit) if limit is not None else None
        order = sorted(range(len(self._plan.sessions)), key=self._plan.arrivals_s.__getitem__)
        self._zero_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in order:
                due_s = self._plan.arrivals_s[number]
                await self._until(due_s)
                if places is not None:
                    due_s = max(due_s, await places.get())
                group.create_task(self._session(number, due_s, places))
        return self.ended()

    def ended(self) -> list[Record]:
        ended = [each for each in self._records if each.ended_s > 0 and each.error != STOPPED]
        return sorted(ended, key=lambda record: (record.session, record.turn))

    async def _session(self, number: int, due_s: float, places: Places | None) -> None:
        session, pauses_s = self._plan.sessions[number], self._plan.pauses_s[number]
        history = History()
        has_failed = False
        for index, turn in enumerate(session.turns):
            if index and not has_failed:
                due_s = self._now_s() + pauses_s[index - 1]
                await self._until(due_s)
            record = Record(number, index, due_s, num_input=turn.num_input)
            self._records.append(record)
            if has_failed:
                record.sent_s = record.ended_s = due_s = self._now_s()
                record.planned_s, record.error = due_s, NOT_SENT
                continue
            history.contents.append(turn.content)
            if self._on_start is not None:
                self._on_start()
            await self._sender.send(history, turn.num_output, record, self._zero_s)
            history.answers.append(record.text)
            has_failed = not record.is_ok
            if self._on_end is not None:
                self._on_end(record)
        if places is not None:
            places.put_nowait(self._now_s())

    async def _until(self, at_s: float) -> None:
        left_s = at_s - self._now_s()
        if left_s > 0:
            await asyncio.sleep(left_s)

    def _now_s(self) -> float:
        return time.perf_counter() - self._zero_s
