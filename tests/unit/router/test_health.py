"""Workers that go away and come back, and what they say of themselves."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.config import HealthRules, WorkerRole
from baton.router.worker_reports import facts_from, load_from
from baton.testing.fake_worker import FakeWorker

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello"}


def test_a_restarted_worker_is_used_again_with_its_new_facts(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            decode = c.decodes[0]
            decode.info["pid"] = 1
            await decode.kill()
            await c.until_healthy(1)
            assert (await c.post("/generate", GENERATE))[0] == 503
            decode.info["pid"] = 2
            await decode.start()
            await c.until_healthy(2)
            assert (await c.post("/generate", GENERATE))[0] == 200
            (record,) = [r for r in await records(c) if r["worker_type"] == "decode"]
            assert record["pid"] == 2

    run(scenario)


async def records(c: Any) -> list[Any]:
    _, _, body = await c.get("/workers")
    listed: list[Any] = json.loads(body)["workers"]
    return listed


def test_failing_health_takes_a_worker_out_and_back(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].health_status = 503
            await c.until_healthy(1)
            (record,) = [r for r in await records(c) if r["worker_type"] == "prefill"]
            assert (record["is_healthy"], record["reason"]) == (False, "GET /health answers 503")
            c.prefills[0].health_status = 200
            await c.until_healthy(2)

    run(scenario)


def test_a_worker_that_hangs_is_taken_out_and_back(run: Run, cluster: ClusterMaker) -> None:
    rules = HealthRules(interval_s=0.05, timeout_s=0.1, failure_threshold=2)

    async def scenario() -> None:
        async with cluster(1, 2, health=rules) as c:
            hung = c.decodes[0]
            hung.health_gate = asyncio.Event()
            await c.until_healthy(2)
            for _ in range(4):
                assert (await c.post("/generate", GENERATE))[0] == 200
            assert hung.requests == []
            hung.health_gate.set()
            await c.until_healthy(3)

    run(scenario)


def test_a_worker_that_comes_late_is_taken(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 0) as c:
            late = FakeWorker("decode")
            await late.start()
            await late.stop()
            body = {"url": late.url, "worker_type": "decode"}
            assert (await c.post("/workers", body))[0] == 202
            assert (await c.post("/generate", GENERATE))[0] == 503
            await late.start()
            await c.until_healthy(2)
            assert (await c.post("/generate", GENERATE))[0] == 200
            await late.stop()

    run(scenario)


def test_reported_loads_reach_the_pool(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decodes[0].loads = {"loads": [{"num_running_reqs": 3, "num_total_tokens": 70}]}
            (decode,) = c.fleet.pool.of_role(WorkerRole.DECODE)
            num_asked = len(c.decodes[0].other_requests)
            await c.decodes[0].until(
                lambda w: sum(r.path == "/v1/loads" for r in w.other_requests[num_asked:]) == 2
            )
            assert decode.load is not None
            assert (decode.load.num_requests, decode.load.num_tokens) == (3, 70)
            _, _, body = await c.get("/get_loads")
            assert {"worker": decode.url, "load": 70} in json.loads(body)["workers"]

    run(scenario)


@pytest.mark.parametrize(
    ("answer", "load"),
    [
        (
            {"loads": [{"num_running_reqs": 2, "num_waiting_reqs": 1, "num_total_tokens": 9}]},
            (3, 9),
        ),
        ([{"dp_rank": 0, "num_tokens": 5}, {"dp_rank": 1, "num_tokens": 6}], (None, 11)),
        ([{"num_reqs": 4, "num_waiting_reqs": 2, "num_tokens": 5}], (4, 5)),
        ({"loads": "?"}, None),
        (None, None),
        ([3], None),
        ([{"num_tokens": "many"}], (None, 0)),
    ],
)
def test_loads_of_every_shape(answer: Any, load: Any) -> None:
    assert load_from(answer) == load


def test_facts_of_any_shape() -> None:
    facts = facts_from(
        {"served_model_name": "m", "pid": 7, "tp_size": 1, "disaggregation_bootstrap_port": 8999},
        {"model_path": "/m", "architectures": ["A"]},
    )
    assert (facts.model_id, facts.pid, facts.bootstrap_port) == ("m", 7, 8999)
    assert facts.metadata["tp_size"] == "1"
    assert facts.metadata["architectures"] == '["A"]'
    assert facts_from(None, [1]).model_id == "unknown"
    assert facts_from({"pid": "x", "disaggregation_bootstrap_port": True}, None).pid is None
