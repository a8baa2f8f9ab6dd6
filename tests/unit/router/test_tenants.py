"""Keys, tenants and limits over HTTP: who gets in, what workers see, and what the client reads."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from baton.router.keys import parse_keys
from baton.router.waiting import WaitingRules
from baton.testing.fake_worker import Script

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]

FILE = """
- {key: sk-a, tenant: a, max_concurrent: 1, requests_per_minute: 3, max_priority: 5}
- {key: sk-b, tenant: b, tokens_per_minute: 600}
- {key: sk-admin, tenant: ops, admin: true}
"""
CALLERS = parse_keys(FILE, "FILE")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def chat(cluster: Cluster, key: str, **more: Any) -> tuple[int, Any, Any]:
    status, headers, body = await cluster.post(
        "/v1/chat/completions", {**CHAT, **more}, headers=bearer(key)
    )
    return status, headers, json.loads(body)


def test_only_keys_of_the_file_get_in(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            for headers in ({}, bearer("sk-x"), {"Authorization": "sk-a"}):
                status, _, body = await c.post("/v1/chat/completions", CHAT, headers=headers)
                assert status == 401
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
            assert not c.decodes[0].requests
            assert (await chat(c, "sk-a"))[0] == 200
            assert (await c.get("/health"))[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    ("options", "seen"),
    [({}, None), ({"worker_key": "sk-w"}, "Bearer sk-w"), ({"api_key": "op"}, "Bearer op")],
)
def test_workers_never_see_a_tenants_key(
    run: Run, cluster: ClusterMaker, options: dict[str, Any], seen: str | None
) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS, **options) as c:
            assert (await chat(c, "sk-a"))[0] == 200
            assert (await c.get("/v1/models", headers=bearer("sk-a")))[0] == 200
            for worker in c.workers:
                asked = [*worker.requests, *worker.other_requests]
                assert asked
                assert {request.headers.get("Authorization") for request in asked} == {seen}

    run(scenario)


def test_tenants_ask_for_tokens_and_models_only(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS, api_key="op") as c:
            for path in ("/workers", "/get_loads", "/server_info"):
                status, _, body = await c.get(path, headers=bearer("sk-a"))
                assert (status, json.loads(body)["error"]["code"]) == (403, "permission_denied")
                assert (await c.get(path))[0] == 401
                assert (await c.get(path, headers=bearer("sk-admin")))[0] == 200
                assert (await c.get(path, headers=bearer("op")))[0] == 200
            status, _, _ = await c.post(
                "/abort_request", {"abort_all": True}, headers=bearer("sk-a")
            )
            assert status == 403
            for path in ("/v1/models", "/v1/models/fake-model", "/model_info"):
                assert (await c.get(path, headers=bearer("sk-a")))[0] == 200

    run(scenario)


def test_limits_are_told_as_openai_tells_them(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            for left in (2, 1, 0):
                status, headers, _ = (
                    await chat(c, "sk-a", stream=left == 1)
                    if left != 1
                    else (
                        await c.post(
                            "/v1/chat/completions", {**CHAT, "stream": True}, headers=bearer("sk-a")
                        )
                    )
                )
                assert status == 200
                assert headers["x-ratelimit-limit-requests"] == "3"
                assert headers["x-ratelimit-remaining-requests"] == str(left)
            status, headers, body = await chat(c, "sk-a")
            assert status == 429
            assert 1 <= int(headers["Retry-After"]) <= 20
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert body["error"]["type"] == "rate_limit_error"
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert "3 requests per minute" in body["error"]["message"]
            assert len(c.decodes[0].requests) == 3

            assert (await chat(c, "sk-b", max_tokens=1024))[0] == 200
            status, headers, body = await chat(c, "sk-b", max_tokens=1024)
            assert status == 429
            assert "600 tokens per minute" in body["error"]["message"]
            assert headers["x-ratelimit-limit-tokens"] == "600"

            _, _, metrics = await c.get("/metrics")
            text = metrics.decode()
            assert 'baton_router_tenant_requests_total{tenant="a"} 3.0' in text
            assert 'baton_router_tenant_refused_total{limit="requests",tenant="a"} 1.0' in text
            assert 'baton_router_tenant_running{tenant="a"} 0.0' in text
            assert "sk-a" not in text

    run(scenario)


def test_concurrent_requests_of_a_tenant(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            gate = asyncio.Event()
            c.decodes[0].script = Script(gates={3: gate})
            first = asyncio.create_task(chat(c, "sk-a"))
            await c.decodes[0].until(lambda worker: len(worker.requests) == 1)
            status, headers, body = await chat(c, "sk-a")
            assert (status, headers["Retry-After"]) == (429, "1")
            assert "1 at a time" in body["error"]["message"]
            gate.set()
            assert (await first)[0] == 200
            assert (await chat(c, "sk-a"))[0] == 200

    run(scenario)


def test_the_most_urgent_priority(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            assert (await chat(c, "sk-a", priority=5))[0] == 200
            status, _, body = await chat(c, "sk-a", priority=6)
            assert status == 403
            assert body["error"]["param"] == "priority"
            assert (await chat(c, "sk-admin", priority=6))[0] == 200
        waiting = WaitingRules(low_values_first=True)
        async with cluster(callers=CALLERS, waiting=waiting) as c:
            assert (await chat(c, "sk-a", priority=6))[0] == 200
            assert (await chat(c, "sk-a", priority=4))[0] == 403

    run(scenario)


def test_keys_can_be_replaced_while_requests_run(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            gate = asyncio.Event()
            c.decodes[0].script = Script(gates={3: gate})
            running = asyncio.create_task(chat(c, "sk-a"))
            await c.decodes[0].until(lambda worker: len(worker.requests) == 1)
            c.app.replace_keys(parse_keys("- {key: sk-new, tenant: new}", "FILE"))
            assert (await chat(c, "sk-a"))[0] == 401
            gate.set()
            assert (await running)[0] == 200
            assert (await chat(c, "sk-new"))[0] == 200
            text = (await c.get("/metrics"))[2].decode()
            assert 'tenant="new"' in text
            assert 'tenant="a"' not in text

    run(scenario)


def test_the_openai_client_waits_as_told_and_sees_its_errors(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(callers=CALLERS) as c:
            async with openai.AsyncOpenAI(
                base_url=f"{c.url}/v1", api_key="sk-a", max_retries=0
            ) as client:
                for _ in range(3):
                    await client.chat.completions.create(**CHAT)
                with pytest.raises(openai.RateLimitError) as limited:
                    await client.chat.completions.create(**CHAT)
                assert limited.value.code == "rate_limit_exceeded"
                with pytest.raises(openai.AuthenticationError):
                    await client.with_options(api_key="no").chat.completions.create(**CHAT)

    run(scenario)
