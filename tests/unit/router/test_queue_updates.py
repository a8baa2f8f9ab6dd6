"""Waiting clients: their own deadline, comments about their place, and how these streams end."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from baton.core.errors import RequestError
from baton.router import queue_updates
from baton.router.queue_updates import max_wait_s_of
from baton.router.waiting import WaitingRules
from baton.testing.fake_worker import Script

from .conftest import Cluster, ClusterMaker, until

Run = Callable[[Callable[[], Any]], None]
STREAM = {"text": "hi", "stream": True}
ASKS = {"X-Baton-Queue-Updates": "1"}


@asynccontextmanager
async def full(cluster: ClusterMaker, **rules: Any) -> AsyncIterator[tuple[Cluster, asyncio.Event]]:
    """A router whose only place is taken until the event."""
    async with cluster(0, 0, 1, waiting=WaitingRules(max_running=1, **rules)) as c:
        gate = asyncio.Event()
        c.regulars[0].script = Script(gates={2: gate})
        first = asyncio.create_task(c.post("/generate", {"text": "a"}))
        await c.regulars[0].until(lambda worker: len(worker.requests) == 1)
        yield c, gate
        gate.set()
        assert (await first)[0] == 200


async def first_line(response: aiohttp.ClientResponse) -> bytes:
    return await response.content.readuntil(b"\n\n")


def test_a_waiting_stream_is_told_its_place(
    run: Run, cluster: ClusterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_updates, "UPDATE_S", 0.01)

    async def scenario() -> None:
        async with full(cluster) as (c, gate):
            plain = await asyncio.wait_for(c.get("/queue"), 5)
            assert json.loads(plain[2])["running"] == 1
            ahead = asyncio.create_task(c.post("/generate", {"text": "b"}))
            await until(lambda: c.fleet.admission.num_waiting == 1)
            async with c.session.post(c.url + "/generate", json=STREAM, headers=ASKS) as response:
                assert response.status == 200
                assert response.headers["Content-Type"] == "text/event-stream"
                for _ in range(3):
                    assert await first_line(response) == b": queued position=2\n\n"
                gate.set()
                rest = await response.read()
            assert (await ahead)[0] == 200
            assert rest.endswith(b"data: [DONE]\n\n")
            events = [line for line in rest.split(b"\n\n") if line.startswith(b"data: {")]
            assert len(events) == 8
            gate.clear()
            again = asyncio.create_task(c.post("/generate", {"text": "a"}))
            await c.regulars[0].until(lambda worker: len(worker.requests) == 4)
            async with c.session.post(c.url + "/generate", json=STREAM, headers=ASKS) as response:
                line = await first_line(response)
                assert re.fullmatch(rb": queued position=1 estimate=\d+\.\ds\n\n", line)
                gate.set()
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert (await again)[0] == 200
            assert json.loads((await c.get("/queue"))[2]) == {
                "waiting": 0,
                "running": 0,
                "max_running": 1,
                "max_waiting": 100,
                "expected_wait_s": 0.0,
            }

    run(scenario)


def test_a_stream_that_waited_in_vain_ends_with_one_error(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with full(cluster) as (c, _):
            headers = {**ASKS, "X-Baton-Deadline-Ms": "50"}
            status, _, body = await c.post("/generate", STREAM, headers=headers)
            assert status == 200
            comment, event, done, end = body.split(b"\n\n")
            assert comment.startswith(b": queued position=1")
            assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "queue_timeout"
            assert (done, end) == (b"data: [DONE]", b"")
            text = (await c.get("/metrics"))[2]
            assert b'requests_total{route="/generate",status="503"} 1.0' in text

    run(scenario)


def test_a_worker_that_rejects_after_updates_is_told_as_an_event(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with full(cluster) as (c, gate):
            async with c.session.post(c.url + "/generate", json=STREAM, headers=ASKS) as response:
                await first_line(response)
                c.regulars[0].script = Script(status=400, error={"error": {"message": "too long"}})
                gate.set()
                rest = await response.read()
            assert rest.count(b"too long") == 1
            assert rest.endswith(b"data: [DONE]\n\n")

    run(scenario)


def test_a_deadline_is_the_clients_own(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with full(cluster, max_wait_s=30.0) as (c, gate):
            headers = {"X-Baton-Deadline-Ms": "20"}
            status, answer, body = await c.post("/generate", {"text": "b"}, headers=headers)
            assert status == 503
            assert int(answer["Retry-After"]) >= 1
            assert json.loads(body)["error"]["code"] == "queue_timeout"
            assert "X-Baton-Queue-Wait" in answer
            headers = {"X-Baton-Deadline-Ms": "soon"}
            status, _, body = await c.post("/generate", {"text": "b"}, headers=headers)
            assert status == 400
            assert json.loads(body)["error"]["param"] == "X-Baton-Deadline-Ms"
            headers = {"X-Baton-Deadline-Ms": "15000"}
            meets = asyncio.create_task(c.post("/generate", {"text": "b"}, headers=headers))
            await until(lambda: c.fleet.admission.num_waiting == 1)
            gate.set()
            assert (await meets)[0] == 200

    run(scenario)


def test_who_does_not_ask_is_not_told(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with full(cluster) as (c, gate):
            tasks = [
                asyncio.create_task(c.post("/generate", STREAM)),
                asyncio.create_task(c.post("/generate", {"text": "whole"}, headers=ASKS)),
            ]
            await until(lambda: c.fleet.admission.num_waiting == 2)
            gate.set()
            for task in tasks:
                status, headers, body = await task
                assert status == 200
                assert float(headers["X-Baton-Queue-Wait"]) >= 0
                assert b"queued" not in body

    run(scenario)


def test_the_openai_client_reads_over_the_comments(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with full(cluster) as (c, gate):
            async with openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none") as client:
                stream = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": "hi"}],
                    stream=True,
                    extra_headers=ASKS,
                )
                gate.set()
                assert len([chunk async for chunk in stream]) >= 8

    run(scenario)


@pytest.mark.parametrize("given", ["", "0", "-1", "1.5", "1e3", "²", "9" * 10, "9" * 5000])
def test_odd_deadlines_are_refused(given: str) -> None:
    with pytest.raises(RequestError, match="whole number of milliseconds from 1"):
        max_wait_s_of({"x-baton-deadline-ms": given})


def test_deadlines_in_milliseconds() -> None:
    assert max_wait_s_of({"x-baton-deadline-ms": "1500"}) == 1.5
    assert max_wait_s_of({}) is None
