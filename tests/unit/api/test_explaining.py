"""A worker explains its requests and hands out its profile, to whom may ask."""

import asyncio
from typing import Any

import msgspec
import pytest

from baton.api.state import ApiConfig
from baton.core.timeline import Timeline
from baton.obs.chrome_trace import Trace
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker

BODY = {"text": "abc", "sampling_params": {"max_new_tokens": 3}}


async def ask(worker: FakeWorker, name: str, body: dict[str, Any] = BODY) -> int:
    return (await worker.post("/generate", body, {"X-Request-ID": name}))[0]


def phases_of(answer: dict[str, Any]) -> list[str]:
    return [name for name, *_ in answer["api"]["phases"]]


def test_a_request_is_explained_by_any_of_its_names() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            assert await ask(worker, "mine") == 200
            engine_id = worker.engine.requests[0].request_id
            made = Timeline.begin(engine_id, "queue", 1.0)
            worker.engine.timelines.append(made)
            for name in ("mine", engine_id):
                status, answer = await worker.get(f"/explain/{name}")
                assert status == 200
                assert phases_of(answer) == ["read", "pair", "engine", "stream"]
                assert answer["api"]["outcome"] == "HTTP 200"
                assert [each["request_id"] for each in answer["engine"]] == [engine_id]

    asyncio.run(scenario())


def test_a_running_request_is_explained_too() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(FakeEngine(pause_after=0)) as worker:
            asked = asyncio.create_task(ask(worker, "slow"))
            await worker.engine.until_running()
            _, answer = await worker.get("/explain/slow")
            assert phases_of(answer) == ["read", "pair", "engine"]
            assert answer["api"]["end_s"] is None
            worker.engine.resume()
            assert await asked == 200

    asyncio.run(scenario())


def test_a_refused_request_says_how_it_ended() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            too_long = {**BODY, "sampling_params": {"max_new_tokens": 10**6}}
            assert await ask(worker, "wrong", too_long) == 400
            _, answer = await worker.get("/explain/wrong")
            assert answer["api"]["outcome"] == "HTTP 400"

    asyncio.run(scenario())


def test_unknown_requests_and_strangers_get_nothing() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            status, answer = await worker.get("/explain/nobody")
            assert (status, answer["error"]["code"]) == (404, "unknown_request")
            assert "'nobody'" in answer["error"]["message"]
        async with serve_fake_worker(config=ApiConfig(api_key="k")) as worker:
            for path in ("/explain/a", "/start_profile", "/stop_profile"):
                assert (await worker.get(path))[0] == 401
            assert not worker.engine.is_profiled

    asyncio.run(scenario())


def test_the_answer_of_stop_is_the_trace() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            assert await ask(worker, "before") == 200
            body = {"output_dir": "traces", "activities": ["CPU"], "num_steps": 7}
            status, answer = await worker.post("/start_profile", body)
            assert (status, worker.engine.profiled_steps) == (200, 7)
            assert [note.split()[0] for note in answer["notes"]] == [
                "output_dir",
                "activities",
                "no",
            ]
            assert await ask(worker, "during") == 200
            status, answer = await worker.post("/stop_profile", None)
            assert status == 200
            trace = msgspec.convert(answer, Trace)
            ids = {e["args"]["request_id"] for e in trace.events if e["ph"] == "b"}
            assert ids == {"during"}
            assert [process.kind for process in trace.facts.processes] == ["engine", "api"]
            status, answer = await worker.post("/stop_profile", None)
            assert (status, answer["error"]["code"]) == (409, "no_profile")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": True}, "num_steps is True"),
        ({"num_steps": "5"}, "num_steps is '5'"),
        ({"steps": 5}, "steps is no field"),
        ([1], "no JSON object"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(body: Any, words: str) -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            status, answer = await worker.post("/start_profile", body)
            assert status == 400
            assert words in answer["error"]["message"]
            assert not worker.engine.is_profiled

    asyncio.run(scenario())
