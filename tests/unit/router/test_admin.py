"""Routes about the router and its workers, unified workers, and what the guard says."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.config import HealthRules
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker, error_of

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello"}


def test_unified_workers_get_the_body_as_it_came(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 2, policy="round_robin") as c:
            body = b'{"text":  "a", "bootstrap_room": 5}'
            for _ in range(2):
                status, _, _ = await c.post("/generate", body)
                assert status == 200
            assert [[r.raw for r in w.requests] for w in c.regulars] == [[body], [body]]

    run(scenario)


def test_unified_workers_have_the_same_guarantees(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            (worker,) = c.regulars
            worker.script = Script(status=429, headers={"Retry-After": "9"})
            status, headers, _ = await c.post("/generate", GENERATE)
            assert (status, headers["Retry-After"]) == (429, "9")
            worker.script = Script(die_at=3)
            _, _, body = await c.post("/generate", {**GENERATE, "stream": True})
            assert body.count(b"data: ") == 4
            assert error_of(body.split(b"\n\n")[-3][6:])["code"] == "worker_failed"
            worker.script = Script(gates={0: asyncio.Event()})
            asked = asyncio.create_task(c.post("/generate", GENERATE))
            await worker.until(lambda w: len(w.requests) == 3)
            asked.cancel()
            await worker.until(lambda w: w.num_hung_up == 1)
            await worker.stop()
            await c.until_healthy(0)
            _, _, body = await c.post("/generate", GENERATE)
            assert error_of(body)["code"] == "no_worker"

    run(scenario)


def test_workers_are_listed_in_the_captured_shape(
    run: Run, cluster: ClusterMaker, captured: Callable[[str], Any]
) -> None:
    theirs = captured("get_workers")

    async def scenario() -> None:
        async with cluster(1, 1) as c:
            _, _, body = await c.get("/workers")
            ours = json.loads(body)
            assert ours.keys() == theirs.keys()
            assert ours["total"] == 2
            assert ours["stats"] == {"prefill_count": 1, "decode_count": 1, "regular_count": 0}
            for key, value in theirs["workers"][0].items():
                assert type(ours["workers"][0][key]) is type(value), key
            prefill = next(w for w in ours["workers"] if w["worker_type"] == "prefill")
            assert (prefill["model_id"], prefill["bootstrap_port"]) == ("fake-model", 8998)
            status, _, body = await c.get(f"/workers/{prefill['id']}")
            assert (status, json.loads(body)["url"]) == (200, c.prefills[0].url)

    run(scenario)


def test_workers_come_and_go(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 2) as c:
            _, _, body = await c.get("/workers")
            gone = next(w for w in json.loads(body)["workers"] if w["url"] == c.decodes[0].url)
            async with c.session.delete(f"{c.url}/workers/{gone['id']}") as response:
                assert response.status == 202
            async with c.session.delete(f"{c.url}/workers/{gone['id']}") as response:
                assert response.status == 404
            for _ in range(3):
                await c.post("/generate", GENERATE)
            assert not c.decodes[0].requests
            wanted = {"url": c.decodes[0].url + "/", "worker_type": "decode", "priority": 80}
            status, headers, body = await c.post("/workers", wanted)
            again = json.loads(body)
            assert (status, headers["Location"]) == (202, f"/workers/{again['worker_id']}")
            _, _, body = await c.post("/workers", wanted)
            assert json.loads(body)["worker_id"] == again["worker_id"]
            await c.until_healthy(3)
            wanted["worker_type"] = "prefill"
            assert (await c.post("/workers", wanted))[0] == 409

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [
        {"url": "127.0.0.1:3"},
        {"url": "http://h:1", "worker_type": "chef"},
        {"url": "http://h:1", "worker_type": "prefill", "bootstrap_port": 0},
        {"worker_type": "prefill"},
        b"{",
    ],
)
def test_wrong_workers_are_refused(run: Run, cluster: ClusterMaker, body: Any) -> None:
    async def scenario() -> None:
        async with cluster(0, 0) as c:
            status, _, answer = await c.post("/workers", body)
            assert (status, error_of(answer)["type"]) == (400, "invalid_request_error")
            assert len(c.fleet.pool) == 0

    run(scenario)


def test_a_router_without_pairs_refuses_their_workers(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            wanted = {"url": "http://h:1", "worker_type": "decode"}
            status, _, answer = await c.post("/workers", wanted)
            assert status == 400
            assert "--pd-disaggregation" in error_of(answer)["message"]

    run(scenario)


def test_health_and_readiness(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            for path in ("/health", "/liveness", "/readiness", "/health_generate"):
                assert (await c.get(path))[0] == 200
            await c.decodes[0].stop()
            await c.until_healthy(1)
            assert (await c.get("/health"))[0] == 200
            status, _, body = await c.get("/readiness")
            assert (status, json.loads(body)["missing"]) == (503, ["decode"])
            assert (await c.get("/health_generate"))[0] == 503
            status, headers, body = await c.post("/generate", GENERATE)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert "no decode worker available" in error_of(body)["message"]

    run(scenario)


def test_questions_are_passed_to_a_worker(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            for path in ("/v1/models", "/server_info", "/model_info"):
                status, _, body = await c.get(path)
                assert status == 200
                json.loads(body)
            for model, status in (("fake-model", 200), ("org/none", 404)):
                assert (await c.get(f"/v1/models/{model}"))[0] == status
            _, _, body = await c.get("/server_info")
            assert json.loads(body)["disaggregation_mode"] == "decode"

    run(scenario)


def test_flush_and_abort_reach_all_workers(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 2) as c:
            status, _, body = await c.post("/flush_cache", b"")
            assert (status, json.loads(body)["workers_flushed"]) == (200, 3)
            status, _, _ = await c.post("/abort_request", {"rid": "x"})
            assert status == 200
            for worker in c.workers:
                told = {r.path: r.body for r in worker.other_requests if r.method == "POST"}
                assert told == {"/flush_cache": None, "/abort_request": {"rid": "x"}}
            await c.decodes[0].stop()
            status, _, body = await c.post("/flush_cache", b"")
            assert (status, json.loads(body)["workers_flushed"]) == (503, 2)
            assert [f["worker"] for f in json.loads(body)["failed"]] == [c.decodes[0].url]

    run(scenario)


@pytest.mark.parametrize("body", [b"", b"{}", b"[", b'{"rid": 5}', b'{"rid": ""}'])
def test_an_abort_of_nothing_is_the_clients_mistake(
    run: Run, cluster: ClusterMaker, body: bytes
) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            status, _, answer = await c.post("/abort_request", body)
            assert (status, error_of(answer)["type"]) == (400, "invalid_request_error")
            sent = [r for w in c.workers for r in w.other_requests if r.path == "/abort_request"]
            assert sent == []

    run(scenario)


def test_health_generate_asks_a_worker_of_every_role(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, health=HealthRules(interval_s=60)) as c:
            for worker in c.workers:
                worker.health_status = 503
                assert (await c.get("/health_generate"))[0] == 503
                worker.health_status = 200
            assert (await c.get("/health_generate"))[0] == 200

    run(scenario)


def test_metrics(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1) as c:
            await c.post("/generate", GENERATE)
            await c.post("/generate", b"{")
            await c.until_quiet()
            _, headers, body = await c.get("/metrics")
            text = body.decode()
            assert headers["Content-Type"].startswith("text/plain")
            assert 'baton_router_requests_total{route="/generate",status="200"} 1.0' in text
            assert 'baton_router_requests_total{route="/generate",status="400"} 1.0' in text
            assert "baton_router_inflight 0.0" in text
            url = c.decodes[0].url
            assert f'baton_router_worker_healthy{{role="decode",url="{url}"}} 1.0' in text
            assert 'baton_router_ttft_seconds_count{route="/generate"} 1.0' in text

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/generate", b"", 400, "invalid_json"),
        ("POST", "/generate", b"{", 400, "invalid_json"),
        ("POST", "/generate", b'{"text": "\xff"}', 400, "invalid_json"),
        ("POST", "/generate", b" " * 2000, 413, "body_too_large"),
        ("GET", "/generate", b"", 405, "method_not_allowed"),
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("GET", "/workers/none", b"", 404, "not_found"),
    ],
)
def test_refusals_have_openais_shape(
    run: Run, cluster: ClusterMaker, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, max_payload_bytes=1000) as c:
            async with c.session.request(method, c.url + path, data=body) as response:
                said = error_of(await response.read())
                assert (response.status, said["code"]) == (status, code)
                assert {"message", "type", "param", "code"} == said.keys()
                assert response.headers["X-Request-ID"]
                assert response.headers["Server"] == "baton"
            assert not c.decodes[0].requests

    run(scenario)


def test_a_body_too_large_without_a_length_is_refused(run: Run, cluster: ClusterMaker) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 100

    async def scenario() -> None:
        async with cluster(1, 1, max_payload_bytes=1000) as c:
            async with c.session.post(c.url + "/generate", data=pieces()) as response:
                assert response.status == 413
            _, _, metrics = await c.get("/metrics")
            assert b'requests_total{route="/generate",status="413"} 1.0' in metrics

    run(scenario)


def test_api_key(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, api_key="sesame") as c:
            assert (await c.get("/readiness"))[0] == 200
            status, _, body = await c.post("/generate", GENERATE)
            assert (status, error_of(body)["code"]) == (401, "invalid_api_key")
            key = {"Authorization": "Bearer sesame"}
            assert (await c.post("/generate", GENERATE, headers=key))[0] == 200
            assert (await c.get("/workers"))[0] == 401
            assert c.decodes[0].other_requests[0].headers["Authorization"] == "Bearer sesame"

    run(scenario)
