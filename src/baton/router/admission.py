"""The router's door: a request waits here until fewer than --max-concurrent-requests run.

A thin shell of futures and one timer around the line.
Invariant: whoever was let in is counted until the block ends, and whoever leaves while waiting, for
whatever reason, leaves no place taken.
Elsewhere: order, fairness and deadlines, pure (waiting.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from baton.core.clock import Clock
from baton.router.errors import TurnedAway
from baton.router.metrics import RouterMetrics
from baton.router.prompt_shape import Standing
from baton.router.waiting import Refusal, WaitingLine, WaitingRules


class Admission:
    def __init__(self, rules: WaitingRules, metrics: RouterMetrics, clock: Clock) -> None:
        self._is_open = rules.max_running is None
        self._line = WaitingLine(rules)
        self._metrics = metrics
        self._clock = clock
        self._calls: dict[str, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._num_arrivals = 0
        metrics.watch_line(self._line)

    @contextlib.asynccontextmanager
    async def turn(self, standing: Standing, num_tokens: int) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the block runs; raises TurnedAway."""
        if self._is_open:
            yield
            return
        id_ = await self._wait(standing, num_tokens)
        try:
            yield
        finally:
            self._line.finish(id_)
            self._let_in()

    async def _wait(self, standing: Standing, num_tokens: int) -> str:
        self._num_arrivals += 1
        id_, arrived_s = str(self._num_arrivals), self._clock.now_s()
        arrival = self._line.arrive(
            id_,
            tenant=standing.tenant,
            priority=standing.priority,
            num_tokens=num_tokens,
            now_s=arrived_s,
        )
        if arrival.refusal is not None:
            raise self._turned_away(arrival.refusal)
        call = self._calls[id_] = asyncio.get_running_loop().create_future()
        if arrival.displaced is not None:
            self._turn_away(*arrival.displaced)
        self._let_in()
        try:
            await call
        except asyncio.CancelledError:
            self._abandon(id_)
            raise
        finally:
            del self._calls[id_]
        self._metrics.waiting_seconds.observe(self._clock.now_s() - arrived_s)
        return id_

    def _abandon(self, id_: str) -> None:
        """The client left; perhaps in the moment in which it was let in."""
        call = self._calls[id_]
        was_called = call.done() and not call.cancelled() and call.exception() is None
        if not self._line.withdraw(id_) and was_called:
            self._line.finish(id_)
        self._let_in()

    def look_at_clock(self) -> None:
        """Turn away those whose time is up."""
        for id_, refusal in self._line.expire(self._clock.now_s()):
            self._turn_away(id_, refusal)
        self._set_timer()

    def _let_in(self) -> None:
        while (ticket := self._line.start_next(self._clock.now_s())) is not None:
            call = self._calls[ticket.id]
            if call.done():  # cancelled, and its own task has not run yet
                self._line.finish(ticket.id, 0)
            else:
                call.set_result(None)
        self._set_timer()

    def _turn_away(self, id_: str, refusal: Refusal) -> None:
        call = self._calls[id_]
        if not call.done():
            call.set_exception(self._turned_away(refusal))

    def _turned_away(self, refusal: Refusal) -> TurnedAway:
        self._metrics.turned_away.labels(refusal.code).inc()
        return TurnedAway(refusal)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_s = self._line.next_deadline_s()
        if deadline_s is not None:
            delay_s = max(0.0, deadline_s - self._clock.now_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.look_at_clock)
