"""When a leg fails, a client leaves or time runs out: who is told, what, and how soon."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.config import HealthRules, WorkerRole
from baton.testing.fake_worker import FakeWorker, Script

from .conftest import Cluster, ClusterMaker, error_of

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello"}
STREAM = {"text": "hello", "stream": True}
SOON_S = 1.0


def hanging() -> Script:
    return Script(gates={0: asyncio.Event()})


def events_of(body: bytes) -> list[bytes]:
    assert body.endswith(b"\n\n")
    return body.split(b"\n\n")[:-1]


def test_prefills_error_inside_a_stream_counts(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decodes[0].script = hanging()
            for event, status in (
                ({"error": {"message": "too long", "code": 400}}, 400),
                ({"error": {"message": "odd"}}, 500),
                (
                    {
                        "text": "",
                        "meta_info": {
                            "finish_reason": {
                                "type": "abort",
                                "message": "no room",
                                "status_code": 503,
                            }
                        },
                    },
                    503,
                ),
            ):
                c.prefills[0].script = Script(error_event=event)
                got, headers, body = await c.post("/generate", STREAM)
                assert (got, headers["Content-Type"]) == (status, "application/json")
                assert "error" in json.loads(body)
            await c.until_quiet()

    run(scenario)


def test_half_an_event_is_never_passed_on(run: Run, cluster: ClusterMaker) -> None:
    """A worker that dies inside an event: the client sees whole events, then the error."""

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        half = b'data: {"a": 1}\n\ndata: {"b'
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(half), half)
        )
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with cluster() as c:
            server = await asyncio.start_server(dying, "127.0.0.1", 0)
            async with server:
                await replace_decode(c, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
                _, _, body = await c.post("/generate", STREAM)
            first, error, done = events_of(body)
            assert (first, done) == (b'data: {"a": 1}', b"data: [DONE]")
            assert error_of(error[6:])["code"] == "decode_failed"

    run(scenario)


async def replace_decode(c: Cluster, url: str) -> None:
    """Point the decode role at another address, as healthy."""
    (old,) = c.fleet.pool.of_role(WorkerRole.DECODE)
    await c.fleet.leave(old)
    _, _, body = await c.post("/workers", {"url": url, "worker_type": "decode"})
    worker = c.fleet.pool.get(json.loads(body)["worker_id"])
    assert worker is not None
    c.fleet.pool.note_success(worker, 0.0)


def test_a_stream_without_done_is_an_error(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decodes[0].script = Script(says_done=False)
            _, _, body = await c.post("/generate", STREAM)
            assert len(events_of(body)) == 10
            assert "without [DONE]" in error_of(events_of(body)[-2][6:])["message"]

    run(scenario)


def test_a_refused_connection_is_tried_on_another_pair(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(2, 2, policy="round_robin", health=never_probing()) as c:
            await c.prefills[0].stop()
            await c.decodes[1].stop()
            for _ in range(4):
                status, _, _ = await c.post("/generate", GENERATE)
                assert status == 200
            answered = c.decodes[0].requests
            rooms = [request.body["bootstrap_room"] for request in answered]
            assert len(set(rooms)) == len(rooms)
            await c.until_quiet()
            healthy = {w.url for w in c.fleet.pool if w.is_healthy}
            assert healthy == {c.prefills[1].url, c.decodes[0].url}

    run(scenario)


def never_probing() -> HealthRules:
    return HealthRules(interval_s=3600)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_only_worker_refuses(run: Run, cluster: ClusterMaker, role: str) -> None:
    async def scenario() -> None:
        async with cluster(health=never_probing(), worker_wait_s=0.0) as c:
            gone = (c.prefills if role == "prefill" else c.decodes)[0]
            await gone.stop()
            async with asyncio.timeout(SOON_S):
                status, headers, body = await c.post("/generate", GENERATE)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert error_of(body)["code"] == f"{role}_unreachable"
            assert f"{role} worker {gone.url}" in error_of(body)["message"]
            _, headers, body = await c.post("/generate", GENERATE)
            assert error_of(body)["code"] == f"no_{role}_worker"
            assert headers["Retry-After"] == "1"
            await c.until_quiet()

    run(scenario)


def test_without_resumes_a_broken_connection_is_not_tried_again(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(2, 2, max_resumes=0) as c:
            for decode in c.decodes:
                decode.script = Script(die_at=0)
            assert (await c.post("/generate", GENERATE))[0] == 503
            assert sum(len(d.requests) for d in c.decodes) == 1

    run(scenario)


def test_request_timeout(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(request_timeout_s=0.2) as c:
            c.decodes[0].script = hanging()
            status, _, body = await c.post("/generate", GENERATE)
            assert (status, error_of(body)["code"]) == (504, "request_timeout")
            c.decodes[0].script = Script(gates={3: asyncio.Event()})
            status, _, body = await c.post("/generate", STREAM)
            *tokens, error, _done = events_of(body)
            assert (status, len(tokens)) == (200, 2)
            assert error_of(error[6:])["code"] == "request_timeout"
            await c.decodes[0].until(lambda w: w.num_hung_up == 2)
            await c.until_quiet()

    run(scenario)


def test_a_prefill_that_fails_late_does_not_stop_the_stream(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            prefill_may_die, decode_may_go_on = asyncio.Event(), asyncio.Event()
            c.prefills[0].script = Script(gates={0: prefill_may_die}, die_at=0)
            c.decodes[0].script = Script(gates={2: decode_may_go_on})
            async with c.session.post(c.url + "/generate", json=STREAM) as response:
                await response.content.readuntil(b"\n\n")
                prefill_may_die.set()
                await c.fleet.until(
                    lambda pool: not any(w.num_in_flight for w in pool if w.role == "prefill")
                )
                decode_may_go_on.set()
                rest = await response.content.read()
            assert len(events_of(rest)) == 8
            assert b"error" not in rest

    run(scenario)


def test_an_answer_that_is_not_json_is_the_workers_fault(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c, FakeWorker("decode") as odd:
            odd.script = Script(num_tokens=0, says_done=False)
            await replace_decode(c, odd.url)
            status, _, body = await c.post("/generate", STREAM)
            assert (status, error_of(body)["code"]) == (503, "decode_failed")

    run(scenario)
