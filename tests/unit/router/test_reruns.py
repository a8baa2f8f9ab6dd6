"""Requests of whose answer the client has seen nothing when a worker fails: they are run again."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from baton.testing.fake_worker import FakeWorker, Script

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"text": "x", "rid": "r"}),
    "stream": ("/generate", {"text": "x", "rid": "r", "stream": True}),
    "logprobs": ("/generate", {"text": "x", "return_logprob": True, "stream": True}),
    "several": ("/generate", {"text": ["x", "y"]}),
    "chat": ("/v1/chat/completions", {"messages": [], "n": 2, "stream": True}),
    "text": ("/v1/completions", {"prompt": ["x", "y"], "echo": True, "logprobs": 1}),
}
DYING = {
    "its connection breaks": Script(die_at=0),
    "it says that it died": Script(status=503),
}


def attempts(workers: Sequence[FakeWorker]) -> list[str | None]:
    return [
        recorded.headers.get("X-Baton-Attempt")
        for worker in workers
        for recorded in worker.requests
    ]


def gave_up(c: Cluster) -> bool:
    return b'baton_router_resumes_total{outcome="given_up"}' in c.fleet.metrics.render()


def hold(workers: Sequence[FakeWorker], script: Script) -> asyncio.Event:
    """The next request at any of them waits; then what `script` says happens to it."""
    may_go_on = asyncio.Event()
    for worker in workers:
        worker.script = dataclasses.replace(script, gates={0: may_go_on})
    return may_go_on


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("how", DYING)
@pytest.mark.parametrize("name", REQUESTS)
def test_it_is_run_again_elsewhere(
    run: Run, cluster: ClusterMaker, name: str, how: str, role: str
) -> None:
    path, body = REQUESTS[name]

    async def scenario() -> None:
        async with cluster(2, 2) as c:
            status, _, expected = await c.post(path, body)
            assert status == 200
            for worker in c.workers:
                worker.requests.clear()
            dying, others = (c.prefills, c.decodes)[:: 1 if role == "prefill" else -1]
            may_die, _never = hold(dying, DYING[how]), hold(others, Script())
            asking = asyncio.create_task(c.post(path, body))
            for workers in (dying, others):
                await asyncio.wait(
                    [asyncio.create_task(w.until(lambda w: len(w.requests) == 1)) for w in workers],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            for worker in c.workers:
                worker.script = Script()
            may_die.set()
            status, _, got = await asking
            assert (status, got) == (200, expected)
            assert sorted(len(worker.requests) for worker in dying) == [1, 1]
            assert sorted(attempts(dying), key=str) == ["2", None]
            assert not gave_up(c)
            await c.until_quiet()

    run(scenario)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["generate", "stream"])
def test_the_only_pair_is_waited_for(run: Run, cluster: ClusterMaker, name: str, role: str) -> None:
    path, body = REQUESTS[name]

    async def scenario() -> None:
        async with cluster(1, 1) as c:
            _, _, expected = await c.post(path, body)
            dying, other = (c.prefills[0], c.decodes[0])[:: 1 if role == "prefill" else -1]
            hold([dying], Script()), hold([other], Script())
            asking = asyncio.create_task(c.post(path, body))
            await dying.until(lambda w: len(w.requests) == 2)
            await other.until(lambda w: len(w.requests) == 2)
            await dying.kill()
            dying.script = other.script = Script()
            await c.until_healthy(1)
            assert not asking.done()
            await dying.start()
            status, _, got = await asking
            assert (status, got) == (200, expected)
            await c.until_quiet()

    run(scenario)


@pytest.mark.parametrize("end", ["late", "expired", "client left"])
def test_nobody_waits_for_ever(run: Run, cluster: ClusterMaker, end: str) -> None:
    limits = {"worker_wait_s": 0.3 if end == "late" else 30, "request_timeout_s": 30}
    if end == "expired":
        limits["request_timeout_s"] = 0.3

    async def scenario() -> None:
        async with cluster(1, 1, **limits) as c:
            hold(c.workers, Script())
            asking = asyncio.create_task(c.post("/generate", {"text": "x"}))
            await c.decodes[0].until(lambda w: len(w.requests) == 1)
            await c.decodes[0].kill()
            await c.until_healthy(1)
            if end == "client left":
                asking.cancel()
                await asyncio.wait({asking})
            else:
                status, _, got = await asking
                assert status == (503 if end == "late" else 504)
                assert (b"decode_failed" if end == "late" else b"request_timeout") in got
            await c.generation.idle.wait()
            await c.until_quiet()
            assert gave_up(c) is (end == "late")

    run(scenario)
