"""The router's door: a request waits here until fewer than --max-concurrent-requests run.

A thin shell of turns and one timer around the line. `enter` needs no task of its own: who waits is
poked. `turn` is the same for a coroutine.
Invariant: a turn that has come counts until it is left, and whoever leaves while waiting, for
whatever reason, leaves no place taken.
Elsewhere: order, fairness and deadlines, pure (waiting.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from baton.core.clock import Clock
from baton.router.errors import TurnedAway
from baton.router.metrics import RouterMetrics
from baton.router.prompt_shape import Standing
from baton.router.waiting import Refusal, WaitingLine, WaitingRules


class Turn:
    """One request's place, waiting or inside. `leave` must follow, once or more often."""

    __slots__ = ("_has_come", "_leave", "_refusal", "id", "poke")

    def __init__(
        self,
        id_: str,
        poke: Callable[[], None],
        leave: Callable[["Turn"], None] | None,
        has_come: bool = False,
    ) -> None:
        self.id = id_
        self.poke = poke
        self._leave = leave
        self._has_come = has_come
        self._refusal: TurnedAway | None = None

    @property
    def has_come(self) -> bool:
        """Whether it may go on; raises TurnedAway. Ask again whenever poked."""
        if self._refusal is not None:
            raise self._refusal
        return self._has_come

    def come(self) -> None:
        self._has_come = True
        self.poke()

    def refuse(self, refusal: TurnedAway) -> None:
        self._refusal = refusal
        self._leave = None
        self.poke()

    def leave(self) -> None:
        """The request ended, or does not want to wait any longer."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave(self)


class Admission:
    """`is_open`: nobody ever waits."""

    def __init__(self, rules: WaitingRules, metrics: RouterMetrics, clock: Clock) -> None:
        self.is_open = rules.max_running is None
        self._line = WaitingLine(rules)
        self._metrics = metrics
        self._clock = clock
        self._turns: dict[str, Turn] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._num_arrivals = 0
        metrics.watch_line(self._line)

    @property
    def num_waiting(self) -> int:
        return self._line.num_waiting

    @property
    def num_running(self) -> int:
        """Those whose turn has come; 0 where nobody ever waits."""
        return self._line.num_running

    @property
    def expected_wait_s(self) -> float:
        """For a request that came now."""
        return self._line.expected_wait_s

    def outlook(self, turn: Turn) -> tuple[int, float | None]:
        """Of one that waits: its place in the line, from 1, and how long it will probably be
        there; None before that was measured."""
        return self._line.num_before(turn.id) + 1, self._line.estimated_wait_s(turn.id)

    def enter(
        self,
        standing: Standing,
        num_tokens: int,
        poke: Callable[[], None],
        max_wait_s: float | None = None,
    ) -> Turn:
        """A request arrives; `poke` is called when its turn has come, or it must go. `max_wait_s`:
        its own limit. Raises TurnedAway if there is no place to wait."""
        if self.is_open:
            return Turn("", poke, None, has_come=True)
        self._num_arrivals += 1
        turn = Turn(str(self._num_arrivals), poke, self._left)
        arrival = self._line.arrive(
            turn.id,
            tenant=standing.tenant,
            priority=standing.priority,
            num_tokens=num_tokens,
            now_s=self._clock.now_s(),
            max_wait_s=max_wait_s,
            weight=standing.weight,
        )
        if arrival.refusal is not None:
            raise self._turned_away(arrival.refusal)
        self._turns[turn.id] = turn
        if arrival.displaced is not None:
            self._turn_away(*arrival.displaced)
        self._let_in()
        return turn

    @contextlib.asynccontextmanager
    async def turn(self, standing: Standing, num_tokens: int) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the block runs; raises TurnedAway."""
        called = asyncio.Event()
        turn = self.enter(standing, num_tokens, called.set)
        try:
            while not turn.has_come:
                await called.wait()
            yield
        finally:
            turn.leave()

    @property
    def rules(self) -> WaitingRules:
        return self._line.rules

    def follow(self, rules: WaitingRules) -> None:
        """Other limits from now on. Under a lower one, whoever is inside or waits stays; under the
        first one, those who are inside already do not count."""
        self._line.rules = rules
        self.is_open = rules.max_running is None
        self._let_in()

    def look_at_clock(self) -> None:
        """Turn away those whose time is up."""
        for id_, refusal in self._line.expire(self._clock.now_s()):
            self._turn_away(id_, refusal)
        self._set_timer()

    def _left(self, turn: Turn) -> None:
        del self._turns[turn.id]
        if not self._line.withdraw(turn.id):
            self._line.finish(turn.id)
        self._let_in()

    def _let_in(self) -> None:
        now_s = self._clock.now_s()
        while (ticket := self._line.start_next(now_s)) is not None:
            self._metrics.waiting_seconds.observe(now_s - ticket.arrived_s)
            self._turns[ticket.id].come()
        self._set_timer()

    def _turn_away(self, id_: str, refusal: Refusal) -> None:
        self._turns.pop(id_).refuse(self._turned_away(refusal))

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
