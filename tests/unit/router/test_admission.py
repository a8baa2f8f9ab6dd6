"""The router's door: who is let in when, and that nobody who leaves keeps a place."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from baton.core.clock import FakeClock
from baton.router.admission import Admission
from baton.router.config import HealthRules
from baton.router.errors import TurnedAway
from baton.router.metrics import RouterMetrics
from baton.router.prompt_shape import Standing
from baton.router.waiting import WaitingRules
from baton.router.workers import WorkerPool
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]


class Door:
    """An admission, and guests who stay until they are told to go."""

    def __init__(self, max_running: int | None = 1, max_waiting: int = 100, max_wait_s: float = 60):
        self.clock = FakeClock()
        self.metrics = RouterMetrics(WorkerPool(HealthRules(), lambda _: None))
        rules = WaitingRules(max_running, max_waiting, max_wait_s)
        self.admission = Admission(rules, self.metrics, self.clock)
        self.inside: list[str] = []
        self._may_go: dict[str, asyncio.Event] = {}

    async def comes(self, name: str, tenant: str = "t", priority: int = 0) -> asyncio.Task[None]:
        self._may_go[name] = asyncio.Event()
        task = asyncio.create_task(self._stay(name, Standing(tenant=tenant, priority=priority)))
        await settle()
        return task

    def opens(self, name: str) -> None:
        """The guest may go, and will when its task runs."""
        self._may_go[name].set()

    async def goes(self, name: str) -> None:
        self.opens(name)
        await settle()

    async def _stay(self, name: str, standing: Standing) -> None:
        async with self.admission.turn(standing, 100):
            self.inside.append(name)
            try:
                await self._may_go[name].wait()
            finally:
                self.inside.remove(name)

    def gauge(self, text: str) -> bool:
        return text in self.metrics.render().decode()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_guests_wait_for_their_turn(run: Run) -> None:
    async def scenario() -> None:
        door = Door(max_running=2)
        tasks = [await door.comes(name) for name in "abc"]
        tasks.append(await door.comes("urgent", priority=1))
        assert door.inside == ["a", "b"]
        assert door.gauge('baton_router_waiting{priority="1"} 1.0')
        assert door.gauge("baton_router_admitted 2.0")
        await door.goes("a")
        assert door.inside == ["b", "urgent"]
        for name in ("b", "urgent", "c"):
            await door.goes(name)
        await asyncio.gather(*tasks)
        assert door.gauge("baton_router_waiting_seconds_count 4.0")
        assert door.gauge("baton_router_admitted 0.0")

    run(scenario)


def test_without_a_limit_nobody_waits(run: Run) -> None:
    async def scenario() -> None:
        door = Door(max_running=None)
        tasks = [await door.comes(str(i)) for i in range(50)]
        assert len(door.inside) == 50
        for i in range(50):
            await door.goes(str(i))
        await asyncio.gather(*tasks)

    run(scenario)


def test_who_comes_to_a_full_line_and_who_is_displaced_are_told(run: Run) -> None:
    async def scenario() -> None:
        door = Door(max_waiting=1)
        inside, waits = await door.comes("inside"), await door.comes("waits")
        late = await door.comes("late")
        with pytest.raises(TurnedAway, match="--queue-size") as refused:
            await late
        assert refused.value.problem.status == 429
        assert refused.value.problem.retry_after_s == 1
        high = await door.comes("high", priority=1)
        with pytest.raises(TurnedAway):
            await waits
        await door.goes("inside")
        assert door.inside == ["high"]
        await door.goes("high")
        await asyncio.gather(inside, high)
        assert door.gauge('baton_router_turned_away_total{code="queue_full"} 2.0')

    run(scenario)


def test_who_waits_too_long_is_turned_away(run: Run) -> None:
    async def scenario() -> None:
        door = Door(max_wait_s=5)
        inside, waits = await door.comes("inside"), await door.comes("waits")
        door.clock.advance(4.9)
        door.admission.look_at_clock()
        assert not waits.done()
        door.clock.advance(0.1)
        door.admission.look_at_clock()
        with pytest.raises(TurnedAway, match="--queue-timeout-secs") as refused:
            await waits
        assert refused.value.problem.status == 503
        await door.goes("inside")
        await inside

    run(scenario)


def test_the_timer_turns_them_away_without_anybody_coming(run: Run) -> None:
    async def scenario() -> None:
        door = Door(max_wait_s=0.01)
        inside, waits = await door.comes("inside"), await door.comes("waits")
        door.clock.advance(1.0)
        with pytest.raises(TurnedAway):
            await waits
        await door.goes("inside")
        await inside

    run(scenario)


def test_who_leaves_while_waiting_takes_no_place(run: Run) -> None:
    async def scenario() -> None:
        door = Door()
        inside = await door.comes("inside")
        gone, next_ = await door.comes("gone"), await door.comes("next")
        gone.cancel()
        await settle()
        await door.goes("inside")
        assert door.inside == ["next"]
        await door.goes("next")
        await asyncio.gather(inside, next_)

    run(scenario)


@pytest.mark.parametrize("when", ["just before", "at once", "just after"])
def test_who_leaves_in_the_moment_of_being_let_in_takes_no_place(run: Run, when: str) -> None:
    async def scenario() -> None:
        door = Door()
        inside, gone = await door.comes("inside"), await door.comes("gone")
        next_ = await door.comes("next")
        match when:
            case "just before":
                gone.cancel()
                door.opens("inside")
            case "at once":  # it is cancelled, but its task has not run when its turn comes
                door.opens("inside")
                gone.cancel()
            case "just after":  # its turn has come, but its task has not run when it is cancelled
                door.opens("inside")
                asyncio.get_running_loop().call_soon(gone.cancel)
        await settle()
        assert gone.cancelled()
        assert door.inside == ["next"]
        await door.goes("next")
        await asyncio.gather(inside, next_)
        assert door.gauge("baton_router_admitted 0.0")

    run(scenario)


def test_a_storm_of_guests_leaves_an_empty_door(run: Run) -> None:
    async def scenario() -> None:
        draw, door = random.Random(7), Door(max_running=3, max_waiting=8, max_wait_s=4)
        tasks: list[asyncio.Task[None]] = []
        for number in range(600):
            tasks.append(await door.comes(str(number), draw.choice("abc"), draw.randrange(3)))
            assert len(door.inside) <= 3
            for task in draw.sample(tasks, k=min(len(tasks), 3)):
                if draw.random() < 0.3:
                    task.cancel()
            if door.inside and draw.random() < 0.5:
                door._may_go[draw.choice(door.inside)].set()
            door.clock.advance(draw.random())
            if draw.random() < 0.3:
                door.admission.look_at_clock()
            door.admission._line.check_invariants()
        for event in door._may_go.values():
            event.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        ways = (type(None), asyncio.CancelledError, TurnedAway)
        assert {type(end) for end in ends} == set(ways)
        line = door.admission._line
        assert (line.num_waiting, line.num_running, door.admission._turns) == (0, 0, {})

    run(scenario)


def test_who_is_poked_needs_no_task_to_wait(run: Run) -> None:
    async def scenario() -> None:
        door, pokes, standing = Door(max_waiting=2), Counter[str](), Standing(tenant="", priority=0)
        turns = {
            name: door.admission.enter(standing, 1, lambda name=name: pokes.update([name]))
            for name in "abc"
        }
        assert [turn.has_come for turn in turns.values()] == [True, False, False]
        turns["b"].leave()
        turns["a"].leave()
        turns["a"].leave()
        assert turns["c"].has_come
        assert pokes == {"a": 1, "c": 1}
        late = door.admission.enter(standing, 1, lambda: pokes.update(["late"]))
        door.clock.advance(61)
        door.admission.look_at_clock()
        assert pokes["late"] == 1
        with pytest.raises(TurnedAway):
            _ = late.has_come
        late.leave()
        turns["c"].leave()
        assert door.gauge("baton_router_admitted 0.0")

    run(scenario)


def test_over_http_a_full_router_answers_429_with_retry_after(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(waiting=WaitingRules(max_running=1, max_waiting=0)) as c:
            gate = asyncio.Event()
            c.decodes[0].script = Script(gates={0: gate})
            first = asyncio.create_task(c.post("/generate", {"text": "a"}))
            await c.decodes[0].until(lambda w: len(w.requests) == 1)
            status, headers, body = await c.post("/generate", {"text": "a"})
            assert (status, headers["Retry-After"]) == (429, "1")
            assert b'"queue_full"' in body
            assert b'"rate_limit_error"' in body
            gate.set()
            assert (await first)[0] == 200
            assert (await c.post("/generate", {"text": "a"}))[0] == 200

    run(scenario)
