"""Requests that come while no worker can take them wait for one, within bounds."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.breaker import BreakerRules
from baton.router.waiting import WaitingRules
from baton.testing.fake_worker import Script

from .conftest import Cluster, ClusterMaker, error_of

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "x"}


async def lose(c: Cluster) -> None:
    """The only decode worker."""
    await c.decodes[0].kill()
    await c.until_healthy(1)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_request_waits_until_the_worker_is_back(
    run: Run, cluster: ClusterMaker, path: str
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            await lose(c)
            asking = asyncio.create_task(c.post(path, {"text": "x", "prompt": "x"}))
            await asyncio.sleep(0.1)  # health checks see nothing new meanwhile
            assert not asking.done()
            await c.decodes[0].start()
            assert (await asking)[0] == 200
            await c.until_quiet()

    run(scenario)


def test_a_request_waits_for_an_open_breaker(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        breaker = BreakerRules(failure_threshold=1, cool_down_s=0.2)
        async with cluster(0, 0, 1, breaker=breaker) as c:
            c.regulars[0].script = Script(error_event={"error": {"message": "no", "code": 500}})
            await c.post("/generate", {**GENERATE, "stream": True})
            c.regulars[0].script = Script()
            assert (await c.post("/generate", GENERATE))[0] == 200

    run(scenario)


def test_the_first_connection_that_is_refused_is_no_end(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            await c.regulars[0].stop()
            asking = asyncio.create_task(c.post("/generate", GENERATE))
            await c.until_healthy(0)
            await c.regulars[0].start()
            assert (await asking)[0] == 200

    run(scenario)


def test_no_longer_than_the_limit(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(worker_wait_s=0.2) as c:
            await lose(c)
            status, headers, body = await c.post("/generate", GENERATE)
            assert (status, error_of(body)["code"]) == (503, "no_decode_worker")
            assert "Retry-After" in headers

    run(scenario)


def test_no_longer_than_the_client_wants(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(worker_wait_s=60.0) as c:
            await lose(c)
            headers = {"X-Baton-Deadline-Ms": "100"}
            async with c.session.post(
                c.url + "/generate", json=GENERATE, headers=headers
            ) as response:
                assert response.status == 503

    run(scenario)


def test_where_no_worker_is_known_nobody_waits(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, worker_wait_s=60.0) as c:
            status, _, body = await c.post("/generate", GENERATE)
            assert (status, error_of(body)["code"]) == (503, "no_prefill_worker")

    run(scenario)


def test_as_many_wait_as_may_wait_for_their_turn(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(worker_wait_s=60.0, waiting=WaitingRules(max_waiting=2)) as c:
            await lose(c)
            asking = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(3)]
            done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            assert [(await each)[0] for each in done] == [503]
            assert len(waiting) == 2
            await c.decodes[0].start()
            assert [(await each)[0] for each in waiting] == [200, 200]

    run(scenario)
