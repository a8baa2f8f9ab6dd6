"""Clients that come back to another router, with the id of the last event that they have."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from baton.core.request import Finish, FinishReason
from baton.router.app import RouterApp
from baton.router.breaker import BreakerRules
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.event_ids import derive_key
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import serve_fake_worker

from .conftest import PATIENT_PROBES, serving
from .test_resume import _VOLATILE, REQUESTS, SAMPLING, TOKENS, Cables

Run = Callable[[Callable[[], Any]], None]

KEY = derive_key("the secret of this cluster")
DONE = b"data: [DONE]"
WITHOUT_IDS = ("echo with logprobs", "generate with logprobs")


class Router:
    """One router over one worker of its own, which has the tokens of all workers."""

    def __init__(self, app: RouterApp, url: str, engine: FakeEngine, session: Any):
        self.fleet = app.fleet
        self.url = url
        self.engine = engine
        self.session: aiohttp.ClientSession = session
        self.cables = Cables()

    async def ask(
        self, path: str, body: dict[str, Any], last_id: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        async with self.session.post(
            self.url + path, json={**body, "stream": True}, headers=headers
        ) as response:
            return response.status, await response.read()

    async def frames(
        self, path: str, body: dict[str, Any], last_id: str | None = None, **headers: str
    ) -> list[bytes]:
        """The events of a whole stream, but for times."""
        status, answer = await self.ask(path, body, last_id, **headers)
        assert status == 200, answer
        *frames, rest = _VOLATILE.sub(rb'"\1":0', answer).split(b"\n\n")
        assert rest == b""
        return frames

    def num_came_back(self) -> float:
        line = 'baton_router_resumes_total{outcome="came_back"} '
        text = self.fleet.metrics.render().decode()
        return sum(float(each.split()[-1]) for each in text.splitlines() if each.startswith(line))


@contextlib.asynccontextmanager
async def router(num_workers: int = 1, **options: Any) -> AsyncIterator[Router]:
    options = {
        "health": PATIENT_PROBES,
        "breaker": BreakerRules(is_enabled=False),
        "event_id_key": KEY,
    } | options
    engine, cables = FakeEngine(tokens=TOKENS), Cables()
    async with contextlib.AsyncExitStack() as stack:
        specs = []
        for number in range(num_workers):
            each = engine if number == 0 else FakeEngine(tokens=TOKENS)
            worker = await stack.enter_async_context(serve_fake_worker(each))
            port = await stack.enter_async_context(cables.to(worker.port))
            specs.append(WorkerSpec(f"http://127.0.0.1:{port}", WorkerRole.REGULAR))
        app = RouterApp(RouterConfig(workers=tuple(specs), seed=1, **options))
        url = await stack.enter_async_context(serving(app))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await app.fleet.until(lambda pool: all(worker.is_healthy for worker in pool))
        made = Router(app, url, engine, session)
        made.cables = cables
        yield made


@contextlib.asynccontextmanager
async def two_routers(**options: Any) -> AsyncIterator[tuple[Router, Router]]:
    async with router() as first, router(**options) as second:
        yield first, second


def id_of(frame: bytes) -> str:
    line, data = frame.split(b"\n")
    assert line.startswith(b"id: ")
    assert data.startswith(b"data: ")
    return line[4:].decode()


def data_of(frame: bytes) -> bytes:
    return frame.rpartition(b"data: ")[2]


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in WITHOUT_IDS])
def test_behind_whatever_event_the_client_gets_the_same_bytes(run: Run, name: str) -> None:
    path, body = REQUESTS[name]

    async def scenario() -> None:
        async with two_routers() as (first, second):
            frames = await first.frames(path, body)
            assert len(frames) > 15
            assert data_of(frames[-1]) == b"[DONE]"
            for place, frame in enumerate(frames[:-1], start=1):
                assert await second.frames(path, body, id_of(frame)) == frames[place:], place
            assert await second.frames(path, body, id_of(frames[-1])) == [DONE]
            assert second.num_came_back() == len(frames)

    run(scenario)


@pytest.mark.parametrize("name", WITHOUT_IDS)
def test_a_stream_with_logprobs_of_its_prompt_has_no_ids(run: Run, name: str) -> None:
    path, body = REQUESTS[name]

    async def scenario() -> None:
        async with router() as numbered:
            frames = await numbered.frames(path, body)
            assert not any(frame.startswith(b"id: ") for frame in frames)

    run(scenario)


def test_a_router_without_ids_writes_the_same_events(run: Run) -> None:
    path, body = REQUESTS["text"]

    async def scenario() -> None:
        async with router() as numbered, router(event_id_key=None) as plain:
            frames = await numbered.frames(path, body, **{"X-Request-ID": "same"})
            expected = await plain.frames(path, body, **{"X-Request-ID": "same"})
            assert [b"data: " + data_of(frame) for frame in frames] == expected
            status, answer = await plain.ask(path, body, id_of(frames[3]))
            assert status == 400
            assert b"--event-ids" in answer

    run(scenario)


def test_what_does_not_belong_together_is_refused(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with router() as asked:
            last_id = id_of((await asked.frames(path, body))[3])
            for status, answer in (
                await asked.ask(path, {**body, "text": "y"}, last_id),
                await asked.ask(path, {**body, "text": ["x", "y"]}, last_id),
                await asked.ask(path, body, last_id, Authorization="Bearer other"),
                await asked.ask(path, body, last_id[:-1] + "!"),
            ):
                assert status == 400
                error = json.loads(answer)["error"]
                assert (error["code"], error["param"]) == ("invalid_event_id", "Last-Event-ID")
            assert len(asked.engine.requests) == 1
            assert len(await asked.frames(path, body, "")) > 15

    run(scenario)


def test_a_drawn_seed_and_the_ids_that_are_shown_go_along(run: Run) -> None:
    async def scenario() -> None:
        async with two_routers() as (first, second):
            body = {"text": "x", "sampling_params": {"max_new_tokens": 20}}
            frames = await first.frames("/generate", body)
            assert await second.frames("/generate", body, id_of(frames[4])) == frames[5:]
            seeds = {each.engine.requests[0].sampling.seed for each in (first, second)}
            assert len(seeds) == 1
            assert seeds != {0}

    run(scenario)


@pytest.mark.parametrize("place", [1, 5, 9, 20])
def test_the_second_worker_dies_too(run: Run, place: int) -> None:
    """Wherever the second router's worker is cut, before or behind the client's place."""
    path, body = REQUESTS["chat"]

    async def scenario() -> None:
        async with router() as first, router(num_workers=2) as second:
            frames = await first.frames(path, body)
            last_id = id_of(frames[place])
            for cut_after in range(0, 9000, 900):
                second.cables.cut_after, second.cables.num_cuts = cut_after, 1
                got = await second.frames(path, body, last_id)
                assert got == frames[place + 1 :], cut_after
                assert second.cables.num_cuts == 0

    run(scenario)


def shown(frames: list[bytes]) -> tuple[str, list[Any], Any]:
    """Text, end and usage of a chat, however its tokens are grouped."""
    events = [json.loads(data_of(frame)) for frame in frames if data_of(frame) != b"[DONE]"]
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return text, ends, events[-1].get("usage")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_worker_that_groups_tokens_otherwise(run: Run, size: int) -> None:
    path, body = REQUESTS["chat"]

    async def scenario() -> None:
        async with two_routers() as (first, second):
            frames = await first.frames(path, body)
            second.engine.tokens_per_output = size
            num_same = 0
            for place in range(1, len(frames) - 1):
                rest = await second.frames(path, body, id_of(frames[place - 1]))
                if b"worker_failed" in rest[-2]:
                    assert len(rest) == 2
                    assert place > len(frames) - 3 - size, "only the last step is out of reach"
                    continue
                num_same += 1
                assert shown(rest) == shown(frames[place:])
            assert num_same >= len(frames) - 3 - size
            assert 'kind="regrouped"' in second.fleet.metrics.render().decode()

    run(scenario)


def test_a_worker_with_other_weights_is_not_believed(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with two_routers() as (first, second):
            frames = await first.frames(path, body)
            second.engine.tokens = [*TOKENS[:9], *b"something else"]
            assert await second.frames(path, body, id_of(frames[3])) != frames[4:]
            error, done = await second.frames(path, body, id_of(frames[20]))
            assert b"does it serve other weights?" in error
            assert done == DONE

    run(scenario)


def test_a_worker_that_would_begin_anew_is_not_believed(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with two_routers() as (first, second):
            last_id = id_of((await first.frames(path, body))[3])
            second.cables.hides_marks = True
            status, answer = await second.ask(path, body, last_id)
            assert status == 503
            assert b"cannot go on with another worker's stream" in answer

    run(scenario)


def test_behind_an_error_the_client_may_come_back(run: Run) -> None:
    """The error has no id, so the last one that the client has still says where it was."""
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with router(worker_wait_s=0.0) as alone:
            frames = await alone.frames(path, body)
            alone.cables.cut_after, alone.cables.num_cuts = 1500, 1
            *some, error, done = await alone.frames(path, body)
            assert b"worker_failed" in error
            assert error.startswith(b"data: ")
            assert done == DONE
            assert [data_of(frame) for frame in some] == [
                data_of(frame) for frame in frames[: len(some)]
            ]
            rest = await alone.frames(path, body, id_of(some[-1]))
            assert [data_of(frame) for frame in some + rest] == [data_of(frame) for frame in frames]

    run(scenario)


def test_an_aborted_client_may_come_back(run: Run) -> None:
    """An error that the worker tells and the client gets to see."""
    path, body = REQUESTS["chat"]

    async def scenario() -> None:
        async with two_routers() as (first, second):
            frames = await second.frames(path, body, **{"X-Request-ID": "same"})
            first.engine.finish_after = 6
            first.engine.finish_with = Finish(reason=FinishReason.ABORT, status=499)
            *some, error, done = await first.frames(path, body, **{"X-Request-ID": "same"})
            assert b'"aborted"' in error
            assert (error[:6], done) == (b"data: ", DONE)
            rest = await second.frames(path, body, id_of(some[-1]))
            assert [data_of(frame) for frame in some + rest] == [data_of(frame) for frame in frames]

    run(scenario)


def test_of_several_samples_no_event_has_an_id(run: Run) -> None:
    async def scenario() -> None:
        async with router() as asked:
            body = {"text": "x", "sampling_params": {**SAMPLING, "n": 2}}
            frames = await asked.frames("/generate", body)
            assert all(frame.startswith(b"data: ") for frame in frames)

    run(scenario)
