"""A worker that was asked to leave: when it goes, and what it says on the way."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from baton.cluster.announcer import Announcer, WorkerAddress
from baton.core.stop_requests import StopRequests
from baton.launch.departure import NOTICE_S, depart

LIMIT_S = 10.0
ADDRESS = WorkerAddress(url="http://127.0.0.1:9", role="null")


def took_s(scenario: Callable[[], Coroutine[Any, Any, None]]) -> float:
    async def timed() -> float:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        async with asyncio.timeout(LIMIT_S):
            await scenario()
        return loop.time() - start_s

    return asyncio.run(timed())


def test_who_has_nothing_to_do_goes_at_once() -> None:
    async def scenario() -> None:
        await depart(StopRequests(), Announcer([], "", ADDRESS), lambda: 0, 30.0)

    assert took_s(scenario) < 0.2


def test_what_runs_is_finished_and_routers_have_time_to_see_it() -> None:
    num_running = 1

    async def scenario() -> None:
        nonlocal num_running
        leaving = asyncio.create_task(
            depart(StopRequests(), Announcer([], "", ADDRESS), lambda: num_running, 30.0)
        )
        await asyncio.sleep(0.1)
        assert not leaving.done()
        num_running = 0
        await leaving

    assert took_s(scenario) >= NOTICE_S


def test_the_grace_period_ends() -> None:
    async def scenario() -> None:
        await depart(StopRequests(), Announcer([], "", ADDRESS), lambda: 1, 0.1)

    assert 0.1 <= took_s(scenario) < 2.0


def test_a_second_signal_ends_it() -> None:
    async def scenario() -> None:
        stop = StopRequests()
        stop.ask()
        stop.ask()
        await depart(stop, Announcer([], "", ADDRESS), lambda: 1, 30.0)

    assert took_s(scenario) < 2.0
