"""/workers as SGLang's router answers it, exchange by exchange as captured.

Where ours is better on purpose: what is answered is done, not queued, so there is no `job_status`;
and a record says more.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.config import WorkerRole
from baton.testing.fake_worker import FakeWorker

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]
Captured = Callable[[str], Any]
OURS_ALONE = {"pid", "is_announced", "is_draining", "drained_by", "phase", "reason"}


async def ask(c: Cluster, capture: Any, worker: FakeWorker, worker_id: str = "") -> Any:
    """Send the captured request, about a worker of ours; check status and headers."""
    request, theirs = capture["client_request"], capture["router_response"]
    body = request["body"]
    if body is not None and "url" in body:
        body = {**body, "url": worker.url}
    path = f"/workers/{worker_id}" if worker_id else request["path"]
    data = None if body is None else json.dumps(body).encode()
    async with c.session.request(request["method"], c.url + path, data=data) as response:
        answer = await response.json(content_type=None)
        assert response.status == theirs["status"], answer
        assert response.headers["Content-Type"] == theirs["headers"]["Content-Type"]
        if "Location" in theirs["headers"]:
            assert response.headers["Location"] == f"/workers/{answer['worker_id']}"
    return answer


def check_shape(ours: dict[str, Any], theirs: dict[str, Any], more: set[str] | None = None) -> None:
    missing = theirs.keys() - ours.keys() - {"job_status"}
    assert not missing
    assert ours.keys() - theirs.keys() <= (more or set())
    for key in theirs.keys() & ours.keys():
        assert type(ours[key]) is type(theirs[key]), key


@pytest.mark.parametrize("name", ["70_add_worker", "71_add_prefill_new"])
def test_adding(run: Run, cluster: ClusterMaker, captured: Captured, name: str) -> None:
    capture = captured(name)

    async def scenario() -> None:
        wanted = capture["client_request"]["body"]
        async with cluster(0, 0) as c, FakeWorker(wanted["worker_type"]) as worker:
            answer = await ask(c, capture, worker)
            check_shape(answer, capture["router_response"]["body"])
            assert (answer["status"], answer["url"]) == ("accepted", worker.url)
            assert answer["location"] == f"/workers/{answer['worker_id']}"
            added = c.fleet.pool.get(answer["worker_id"])
            assert added is not None
            assert added.role is WorkerRole(wanted["worker_type"])
            assert added.bootstrap_port == wanted.get("bootstrap_port")

    run(scenario)


def test_the_life_of_a_worker(run: Run, cluster: ClusterMaker, captured: Captured) -> None:
    async def scenario() -> None:
        async with cluster(0, 0) as c, FakeWorker("decode") as worker:
            id_ = (await ask(c, captured("70_add_worker"), worker))["worker_id"]
            await c.until_healthy(1)
            theirs = captured("72_get_worker")["router_response"]["body"]
            ours = await ask(c, captured("72_get_worker"), worker, id_)
            check_shape(ours, theirs, OURS_ALONE | {"bootstrap_port", "labels"})
            same = ("priority", "cost", "worker_type", "is_healthy", "load", "connection_mode")
            assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
            changed = await ask(c, captured("73_put_worker"), worker, id_)
            check_shape(changed, captured("73_put_worker")["router_response"]["body"])
            assert (await ask(c, captured("72_get_worker"), worker, id_))["priority"] == 80
            gone = await ask(c, captured("74_delete_worker"), worker, id_)
            check_shape(gone, captured("74_delete_worker")["router_response"]["body"])
            assert len(c.fleet.pool) == 0

    run(scenario)


def test_the_list(run: Run, cluster: ClusterMaker, captured: Captured) -> None:
    theirs = captured("get_workers")

    async def scenario() -> None:
        async with cluster(2, 2) as c:
            ours = json.loads((await c.get("/workers"))[2])
            check_shape(ours, theirs)
            assert ours["stats"] == theirs["stats"]
            assert ours["total"] == theirs["total"]
            more = OURS_ALONE | {"bootstrap_port", "labels"}
            for record in theirs["workers"]:
                check_shape(ours["workers"][0], {**record, "bootstrap_port": 8998}, more)

    run(scenario)


def test_what_is_told_of_a_worker_is_kept(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0) as c:
            wanted = {"url": "http://127.0.0.1:9", "worker_type": "decode"}
            told = {"priority": 7, "cost": 2.5, "labels": {"zone": "b"}}
            id_ = json.loads((await c.post("/workers", {**wanted, **told}))[2])["worker_id"]
            path = f"{c.url}/workers/{id_}"
            async with c.session.put(path, data=b'{"labels": {"rack": "4"}}') as response:
                assert response.status == 202
            async with c.session.get(path) as response:
                record = await response.json(content_type=None)
            told["labels"] = {"rack": "4"}
            assert {key: record[key] for key in told} == told
            async with c.session.put(path, data=b'{"cost": -1}') as response:
                assert response.status == 400
                assert "cost" in (await response.json(content_type=None))["error"]["message"]

    run(scenario)
