"""Workers that take nothing new: by the operator's word, or by their own, while they are well."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.worker_reports import is_draining
from baton.testing.fake_worker import FakeWorker, Script

from .conftest import Cluster, ClusterMaker, until

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello"}


async def record_of(c: Cluster, worker: FakeWorker) -> dict[str, Any]:
    listed = json.loads((await c.get("/workers"))[2])["workers"]
    (record,) = [each for each in listed if each["url"] == worker.url]
    assert isinstance(record, dict)
    return record


async def put(c: Cluster, worker: FakeWorker, body: Any) -> tuple[int, Any]:
    path = f"/workers/{(await record_of(c, worker))['id']}"
    async with c.session.put(c.url + path, data=json.dumps(body).encode()) as response:
        return response.status, json.loads(await response.read())


def test_the_operator_drains_a_worker_and_takes_it_back(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 2) as c:
            away, other = c.decodes
            status, answer = await put(c, away, {"draining": True})
            assert (status, answer["status"]) == (202, "accepted")
            record = await record_of(c, away)
            assert (record["is_healthy"], record["is_draining"]) == (True, True)
            assert record["drained_by"] == ["operator"]
            for _ in range(4):
                assert (await c.post("/generate", GENERATE))[0] == 200
            assert (len(away.requests), len(other.requests)) == (0, 4)
            await put(c, other, {"draining": True})
            assert json.loads((await c.get("/readiness"))[2])["missing"] == ["decode"]
            assert (await c.post("/generate", GENERATE))[0] == 503
            await put(c, away, {"draining": False})
            assert (await c.post("/generate", GENERATE))[0] == 200
            assert len(away.requests) == 1

    run(scenario)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_hand_over_under_way_is_finished(run: Run, cluster: ClusterMaker, role: str) -> None:
    """Its worker says that it drains when the leg is there and nothing was answered yet."""

    async def scenario() -> None:
        async with cluster(2, 2) as c:
            gate = asyncio.Event()
            for worker in c.workers:
                worker.script = Script(gates={1: gate})
            asked = asyncio.create_task(c.post("/generate", {**GENERATE, "stream": True}))
            halves = c.prefills if role == "prefill" else c.decodes
            await until(lambda: any(worker.requests for worker in halves))
            (leaver,) = [worker for worker in halves if worker.requests]
            leaver.is_draining = True
            await c.fleet.until(lambda pool: any(w.is_draining for w in pool))
            gate.set()
            status, _, body = await asked
            assert (status, body.count(b"data: ")) == (200, 9)
            for _ in range(4):
                assert (await c.post("/generate", GENERATE))[0] == 200
            assert len(leaver.requests) == 1
            assert leaver.num_hung_up == 0
            record = await record_of(c, leaver)
            assert (record["phase"], record["drained_by"]) == ("healthy", ["health"])
            leaver.is_draining = False
            await c.fleet.until(lambda pool: not any(w.is_draining for w in pool))

    run(scenario)


def test_what_one_said_the_other_does_not_take_back(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            await put(c, c.decodes[0], {"draining": True})
            c.decodes[0].is_draining = True
            await c.fleet.until(lambda pool: any(len(w.drainers) == 2 for w in pool))
            c.decodes[0].is_draining = False
            await c.fleet.until(lambda pool: all(len(w.drainers) < 2 for w in pool))
            assert (await record_of(c, c.decodes[0]))["drained_by"] == ["operator"]

    run(scenario)


def test_a_worker_that_drained_and_came_back_is_used(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            (decode,) = c.decodes
            decode.is_draining = True
            await c.fleet.until(lambda pool: any(w.is_draining for w in pool))
            await decode.stop()
            await c.until_healthy(1)
            decode.is_draining = False
            await decode.start()
            await c.until_healthy(2)
            assert (await c.post("/generate", GENERATE))[0] == 200

    run(scenario)


@pytest.mark.parametrize("body", [{}, {"draining": "yes"}, {"priorty": 3}, []])
def test_an_update_of_nothing_is_refused(run: Run, cluster: ClusterMaker, body: Any) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            status, answer = await put(c, c.decodes[0], body)
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
            assert not (await record_of(c, c.decodes[0]))["is_draining"]

    run(scenario)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, b'{"error": {"code": "draining"}}', True),
        (503, b'{"error": {"code": "engine_dead"}}', False),
        (200, b'{"error": {"code": "draining"}}', False),
        (503, b'{"error": "draining"}', False),
        (503, b"\xff", False),
        (503, b"", False),
    ],
)
def test_only_the_code_says_that_a_worker_drains(status: int, body: bytes, expected: bool) -> None:
    assert is_draining(status, body) is expected
