"""Two routers in front of the same workers: what each knows of the other, and what not."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from baton.router.app import RouterApp
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.policies import PolicyName
from baton.testing.fake_worker import FakeWorker, Script

from .conftest import FAST_PROBES, Cluster, ClusterMaker, serving, until

Run = Callable[[Callable[[], Any]], None]
NUM_TOKENS = 101
BODY = {"input_ids": [7] * 100, "sampling_params": {"max_new_tokens": 1}}


@asynccontextmanager
async def beside(
    first: Cluster, workers: list[FakeWorker], **options: Any
) -> AsyncIterator[Cluster]:
    """A second router for the same workers."""
    specs = tuple(WorkerSpec(worker.url, WorkerRole.REGULAR) for worker in workers)
    options = {"health": FAST_PROBES, "seed": 2} | options
    app = RouterApp(RouterConfig(workers=specs, **options))
    async with serving(app) as url:
        second = Cluster(app, url, first.session)
        await second.until_healthy(len(workers))
        yield second


class Held:
    """Requests that workers hold until `let_go`."""

    def __init__(self, workers: list[FakeWorker]):
        self._gate = asyncio.Event()
        self._asked: list[asyncio.Task[Any]] = []
        self._workers = workers
        for worker in workers:
            worker.tokens_per_request = NUM_TOKENS
            worker.script = Script(gates={1: self._gate})

    async def send(self, router: Cluster, num: int) -> list[int]:
        """One after another; how many of them each worker got."""
        before = [len(worker.requests) for worker in self._workers]
        for _ in range(num):
            self._asked.append(asyncio.create_task(router.post("/generate", BODY)))
            num_sent = len(self._asked)
            await until(lambda n=num_sent: sum(w.num_running for w in self._workers) == n)
        after = [len(worker.requests) for worker in self._workers]
        return [now - then for now, then in zip(after, before, strict=True)]

    async def burst(self, routers: tuple[Cluster, ...], num: int) -> None:
        """So many through each router, all at once."""
        for router in routers:
            tasks = [asyncio.create_task(router.post("/generate", BODY)) for _ in range(num)]
            self._asked += tasks
        await until(lambda: sum(w.num_running for w in self._workers) == len(self._asked))

    async def until_reported_to(self, *routers: Cluster) -> None:
        running = {worker.url: worker.num_running for worker in self._workers}
        for router in routers:
            await until(
                lambda router=router: all(
                    known.load is not None and known.load.num_requests == running[known.url]
                    for known in router.fleet.pool
                )
            )

    async def let_go(self) -> None:
        self._gate.set()
        assert [(await each)[0] for each in self._asked] == [200] * len(self._asked)


async def drain_at(router: Cluster, worker: FakeWorker, is_wanted: bool = True) -> None:
    known = router.fleet.pool.find(worker.url)
    assert known is not None
    body = json.dumps({"draining": is_wanted}).encode()
    async with router.session.put(f"{router.url}/workers/{known.id}", data=body) as response:
        assert response.status == 202


def test_each_sees_the_load_of_the_other_and_its_own_once(run: Run, cluster: ClusterMaker) -> None:
    """The first fills half of the workers; the second sends to the other half only. Then both
    see all equally loaded, their own requests counted once."""

    async def scenario() -> None:
        async with cluster(0, 0, 4, policy=PolicyName.LEAST_LOADED) as one:
            workers = one.regulars
            async with beside(one, workers, policy=PolicyName.LEAST_LOADED) as two:
                held = Held(workers)
                for worker in workers[2:]:
                    await drain_at(one, worker)
                assert await held.send(one, 8) == [4, 4, 0, 0]
                for worker in workers[2:]:
                    await drain_at(one, worker, False)
                await held.until_reported_to(one, two)
                assert await held.send(two, 8) == [0, 0, 4, 4]
                await held.until_reported_to(one, two)
                assert await held.send(one, 4) == [1, 1, 1, 1]
                await held.let_go()

    run(scenario)


def test_power_of_two_leans_to_what_the_other_left_free(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 4, policy=PolicyName.LEAST_LOADED) as one:
            workers = one.regulars
            async with beside(one, workers, policy=PolicyName.POWER_OF_TWO) as two:
                held = Held(workers)
                for worker in workers[2:]:
                    await drain_at(one, worker)
                assert await held.send(one, 16) == [8, 8, 0, 0]
                await held.until_reported_to(two)
                busy = sum((await held.send(two, 12))[:2])
                # Two busy ones are drawn in one of six draws, and only then is one taken.
                assert busy <= 6
                await held.let_go()

    run(scenario)


@pytest.mark.parametrize("policy", [PolicyName.LEAST_LOADED, PolicyName.POWER_OF_TWO])
def test_they_do_not_herd(run: Run, cluster: ClusterMaker, policy: PolicyName) -> None:
    """Both send bursts of the same moment: neither piles up on one worker what reports, that are
    as old as the burst, call idle."""

    async def scenario() -> None:
        async with cluster(0, 0, 6, policy=policy) as one:
            workers = one.regulars
            async with beside(one, workers, policy=policy) as two:
                held = Held(workers)
                for _ in range(3):
                    await held.burst((one, two), 6)
                    await held.until_reported_to(one, two)
                loads = [worker.num_running for worker in workers]
                assert sum(loads) == 36
                assert max(loads) <= 9
                await held.let_go()

    run(scenario)


def test_a_drain_at_one_is_not_known_to_the_other_but_the_workers_own_is(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 2) as one:
            away, other = one.regulars
            async with beside(one, one.regulars, policy=PolicyName.ROUND_ROBIN) as two:
                await drain_at(one, away)
                for _ in range(4):
                    assert (await one.post("/generate", BODY))[0] == 200
                assert len(away.requests) == 0
                for _ in range(4):
                    assert (await two.post("/generate", BODY))[0] == 200
                assert len(away.requests) == 2
                other.is_draining = True
                for router in (one, two):
                    await router.fleet.until(
                        lambda pool: any("health" in worker.drainers for worker in pool)
                    )
                assert (await one.post("/generate", BODY))[0] == 503
                assert (await two.post("/generate", BODY))[0] == 200
                assert len(away.requests) == 3

    run(scenario)
