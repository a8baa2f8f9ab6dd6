"""Streams that break, and go on at another worker: Baton's own API over engines without a model."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from baton.router.app import RouterApp
from baton.router.breaker import BreakerRules
from baton.router.config import HealthRules, RouterConfig, WorkerRole, WorkerSpec
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import serve_fake_worker

from .conftest import PATIENT_PROBES, serving, until

Run = Callable[[Callable[[], Any]], None]

TEXT = "añ€😀 and so on, until here it stops"
TOKENS = list(TEXT.encode())
SAMPLING = {"max_new_tokens": 30, "temperature": 0}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"text": "x", "rid": "r", "sampling_params": SAMPLING}),
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 100,
            "stop": ["until now", "here it"],
            "logprobs": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "text": ("/v1/completions", {"prompt": "x", "echo": True, "max_tokens": 24}),
    "text with logprobs": ("/v1/completions", {"prompt": "x", "logprobs": 2, "max_tokens": 24}),
    "echo with logprobs": (
        "/v1/completions",
        {"prompt": "xyz", "logprobs": 2, "max_tokens": 24, "echo": True},
    ),
    "generate with logprobs": (
        "/generate",
        {
            "text": "xyz",
            "rid": "r",
            "sampling_params": {**SAMPLING, "stop": "here"},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "return_text_in_logprobs": True,
        },
    ),
}
SEVERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "n": ("/generate", {"text": "x", "rid": "r", "sampling_params": {**SAMPLING, "n": 3}}),
    "one of them ends early": (
        "/generate",
        {
            "text": ["x", "y", "z"],
            "rid": ["a", "b", "c"],
            "sampling_params": [{"max_new_tokens": num, "temperature": 0} for num in (2, 20, 9)],
            "return_logprob": [True, False, True],
            "logprob_start_len": 0,
        },
    ),
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "n": 2,
            "max_tokens": 20,
            "seed": 4,
            "stop": "and",
            "stream_options": {"include_usage": True},
        },
    ),
    "text": (
        "/v1/completions",
        {"prompt": ["x", "yy"], "echo": True, "logprobs": 1, "max_tokens": 12},
    ),
}
_VOLATILE = re.compile(rb'"(e2e_latency|created)":[0-9.e-]+')


class Cables:
    """Connections to workers, of which the next stream's is cut after so many bytes of it.
    `num_cuts`: how many of the next ones are. `hides_marks`: afterwards workers seem not to know
    marks; `hides_streams`: nor to answer with streams."""

    def __init__(self) -> None:
        self.cut_after = 0
        self.num_cuts = 0
        self.hides_marks = False
        self.hides_streams = False
        self.asked: list[bytes] = []
        self.num_marks = 0
        self._passing: dict[int, asyncio.Event] = {}

    def freeze(self, port: int) -> None:
        """From now on nothing goes to or from this worker, as if it were stopped."""
        self._passing[port].clear()

    def thaw(self, port: int) -> None:
        self._passing[port].set()

    @contextlib.asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        running: set[asyncio.Task[None]] = set()
        self._passing[port] = asyncio.Event()
        self._passing[port].set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            try:
                await self._join(reader, writer, port)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()
                running.discard(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in list(running):
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        both = [
            asyncio.create_task(self._ask(reader, to_writer, self._passing[port])),
            asyncio.create_task(self._answer(to_reader, writer, self._passing[port])),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            to_writer.transport.abort()
            await asyncio.gather(*both, return_exceptions=True)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        while chunk := await reader.read(65536):
            await passing.wait()
            self.asked.append(chunk)
            writer.write(chunk)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        left: int | None = None
        while chunk := await reader.read(65536):
            await passing.wait()
            start = chunk.find(b"\r\n\r\n")
            if chunk.startswith(b"HTTP/1.1 "):
                left = None  # the answer before was shorter than its cut: this one has its own
            if left is None and b"text/event-stream" in chunk and self.num_cuts > 0:
                self.num_cuts -= 1
                left = self.cut_after + start + 4
            elif self.hides_marks:
                chunk = chunk.replace(b"X-Baton-Marks", b"X-Other-Field")
            elif self.hides_streams and self.num_cuts == 0:
                chunk = chunk.replace(b"text/event-stream", b"text/plain")
            if left is not None and len(chunk) >= left:
                writer.write(chunk[:left])
                await writer.drain()
                return
            left = None if left is None else left - len(chunk)
            writer.write(chunk)
            self.num_marks += chunk.count(b"\n: t ")


class Cluster:
    def __init__(
        self,
        app: RouterApp,
        url: str,
        cables: Cables,
        engines: list[FakeEngine],
        ports: list[int],
        session: Any,
    ):
        self.fleet = app.fleet
        self.url = url
        self.cables = cables
        self.engines = engines
        self.ports = ports
        self.session: aiohttp.ClientSession = session

    async def stream(self, path: str, body: dict[str, Any]) -> bytes:
        """Everything that the client gets, but for times."""
        headers = {"X-Request-ID": "the-same"}
        async with self.session.post(
            self.url + path, json={**body, "stream": True}, headers=headers
        ) as response:
            assert response.status == 200, await response.text()
            assert "X-Baton-Marks" not in response.headers
            return _VOLATILE.sub(rb'"\1":0', await response.read())

    def resumes(self, outcome: str) -> float:
        line = f'baton_router_resumes_total{{outcome="{outcome}"}} '
        found = [text for text in self.metrics().splitlines() if text.startswith(line)]
        return float(found[0].split()[-1]) if found else 0.0

    @property
    def num_generated(self) -> int:
        return sum(engine.stats.total_generated_tokens for engine in self.engines)

    def metrics(self) -> str:
        return self.fleet.metrics.render().decode()


@contextlib.asynccontextmanager
async def cluster(num_workers: int = 2, **options: Any) -> AsyncIterator[Cluster]:
    """Unified workers behind cables that can be cut."""
    cables, engines = Cables(), [FakeEngine(tokens=TOKENS) for _ in range(num_workers)]
    async with contextlib.AsyncExitStack() as stack:
        specs: list[WorkerSpec] = []
        ports: list[int] = []
        for engine in engines:
            worker = await stack.enter_async_context(serve_fake_worker(engine))
            ports.append(worker.port)
            port = await stack.enter_async_context(cables.to(worker.port))
            specs.append(WorkerSpec(f"http://127.0.0.1:{port}", WorkerRole.REGULAR))
        options = {"health": PATIENT_PROBES, "breaker": BreakerRules(is_enabled=False)} | options
        app = RouterApp(RouterConfig(workers=tuple(specs), seed=1, **options))
        url = await stack.enter_async_context(serving(app))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await app.fleet.until(lambda pool: all(worker.is_healthy for worker in pool))
        yield Cluster(app, url, cables, engines, ports, session)


@pytest.mark.parametrize("name", REQUESTS)
def test_wherever_it_is_cut_the_client_gets_the_same_bytes(run: Run, name: str) -> None:
    path, body = REQUESTS[name]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            assert b": t " not in expected
            for cut_after in range(0, 3 * len(expected) // 2, max(97, len(expected) // 100)):
                both.cables.cut_after, both.cables.num_cuts = cut_after, 1
                assert await both.stream(path, body) == expected, cut_after
            assert both.resumes("resumed") >= 10
            assert both.resumes("given_up") == 0
            both.cables.num_cuts = 0
            for engine in both.engines:
                await engine.until_idle()

    run(scenario)


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_samples_each_is_the_same_wherever_it_is_cut(run: Run, name: str) -> None:
    path, body = SEVERAL[name]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            for cut_after in range(0, 3 * len(expected) // 2, len(expected) // 20):
                both.cables.cut_after, both.cables.num_cuts = cut_after, 1
                got = await both.stream(path, body)
                assert by_sample(got) == by_sample(expected), cut_after
            assert both.resumes("resumed") >= 10
            assert both.resumes("given_up") == 0
            both.cables.num_cuts = 0
            for engine in both.engines:
                await engine.until_idle()

    run(scenario)


def by_sample(said: bytes) -> dict[int, list[Any]]:
    """Events come as their samples come; those of each stay in order. -1: usage, and the end."""
    found: dict[int, list[Any]] = {}
    for frame in said.removesuffix(b"\n\n").split(b"\n\n"):
        payload = frame.removeprefix(b"data: ")
        event = payload if payload == b"[DONE]" else json.loads(payload)
        found.setdefault(index_of(event), []).append(event)
    return found


def index_of(event: Any) -> int:
    if isinstance(event, bytes) or event.get("choices") == []:
        return -1
    return int(event["choices"][0]["index"] if "choices" in event else event["index"])


def test_it_breaks_again_and_again(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            both.cables.cut_after, both.cables.num_cuts = 900, 3
            assert await both.stream(path, body) == expected
            assert both.resumes("resumed") == 3
            both.cables.num_cuts = 4
            got = await both.stream(path, body)
            assert both.cables.num_cuts == 0
            *events, error, done, rest = got.split(b"\n\n")
            assert expected.startswith(b"\n\n".join(events))
            assert b"worker_failed" in error
            assert (done, rest) == (b"data: [DONE]", b"")
            assert both.resumes("given_up") == 1

    run(scenario)


@pytest.mark.parametrize("num_made", [0, 1, 2, 7, 29])
def test_the_engine_dies_and_its_worker_says_so(run: Run, num_made: int) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            for engine in both.engines:
                engine.pause_after = num_made
            before = both.num_generated
            asking = asyncio.create_task(both.stream(path, body))
            await until(lambda: any(engine.running_ids for engine in both.engines))
            (first,) = [engine for engine in both.engines if engine.running_ids]
            (other,) = [engine for engine in both.engines if engine is not first]
            await until(lambda: both.num_generated == before + num_made)
            other.resume()
            first.kill()
            assert await asking == expected
            assert other.requests[-1].num_resumed_tokens == num_made

    run(scenario)


def test_a_drawn_seed_goes_along(run: Run) -> None:
    """Nobody gave one, so the second worker must use what the first one drew."""

    async def scenario() -> None:
        async with cluster() as both:
            both.cables.cut_after, both.cables.num_cuts = 1500, 1
            await both.stream("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 30}})
            seeds = [each.sampling.seed for engine in both.engines for each in engine.requests]
            assert len(seeds) == 2
            assert len(set(seeds)) == 1
            assert seeds[0] != 0

    run(scenario)


def test_a_worker_that_stops_answering_is_given_up(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster(resume_stall_s=0.4) as both:
            expected = await both.stream(path, body)
            for engine in both.engines:
                engine.pause_after = 5
            asking = asyncio.create_task(both.stream(path, body))
            await until(lambda: any(engine.running_ids for engine in both.engines))
            (first,) = [engine for engine in both.engines if engine.running_ids]
            for engine in both.engines:
                if engine is not first:
                    engine.resume()
            assert await asking == expected
            await first.until_idle()

    run(scenario)


async def halted(
    both: Cluster, path: str, body: dict[str, Any]
) -> tuple[asyncio.Task[bytes], int, int]:
    """A stream of which the router has five tokens, and no more come; which engine has it, and
    which one has not."""
    for engine in both.engines:
        engine.pause_after = 5
    num_marks = both.cables.num_marks + 5
    asking = asyncio.create_task(both.stream(path, body))
    await until(lambda: any(engine.running_ids for engine in both.engines))
    (first,) = [n for n, engine in enumerate(both.engines) if engine.running_ids]
    await until(lambda: both.cables.num_marks == num_marks or asking.done())
    assert not asking.done()
    return asking, first, 1 - first


def test_a_worker_that_is_stopped_is_noticed_by_its_silence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its regular health check has much time left."""
    monkeypatch.setattr("baton.router.legs.SILENCE_S", 0.2)
    monkeypatch.setattr("baton.router.health.QUICK_S", 0.2)
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster(health=HealthRules(interval_s=0.05, timeout_s=60.0)) as both:
            expected = await both.stream(path, body)
            asking, first, other = await halted(both, path, body)
            both.cables.freeze(both.ports[first])
            both.engines[other].resume()
            assert await asking == expected
            (lost,) = [worker for worker in both.fleet.pool if not worker.is_healthy]
            assert "none of its streams moves" in lost.health.reason
            both.cables.thaw(both.ports[first])
            await both.fleet.until(lambda pool: all(worker.is_healthy for worker in pool))

    run(scenario)


def test_a_worker_that_answers_may_be_silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.router.legs.SILENCE_S", 0.02)
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            asking, _, _ = await halted(both, path, body)
            await asyncio.sleep(0.3)  # many looks: none may do anything
            assert all(worker.is_healthy for worker in both.fleet.pool)
            for engine in both.engines:
                engine.resume()
            assert await asking == expected
            assert both.resumes("resumed") == 0

    run(scenario)


def test_a_stream_of_a_lost_worker_moves_when_another_one_comes(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        health = HealthRules(interval_s=0.05, timeout_s=0.2)
        async with cluster(health=health) as both:
            expected = await both.stream(path, body)
            asking, first, other = await halted(both, path, body)
            both.cables.freeze(both.ports[other])
            await both.fleet.until(lambda pool: sum(worker.is_healthy for worker in pool) == 1)
            both.cables.freeze(both.ports[first])
            await both.fleet.until(lambda pool: not any(worker.is_healthy for worker in pool))
            assert not asking.done()
            both.engines[other].resume()
            both.cables.thaw(both.ports[other])
            assert await asking == expected
            both.cables.thaw(both.ports[first])

    run(scenario)


def test_with_nobody_else_the_stream_ends_with_an_error(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster(num_workers=1, worker_wait_s=0) as alone:
            alone.cables.cut_after, alone.cables.num_cuts = 900, 1
            got = await alone.stream(path, body)
            assert b"worker_failed" in got
            assert got.endswith(b"data: [DONE]\n\n")
            assert (alone.resumes("resumed"), alone.resumes("given_up")) == (0, 1)

    run(scenario)


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [
        ("hides_marks", b"cannot go on with another worker's stream"),
        ("hides_streams", b"it went on with a stream by no stream"),
    ],
)
def test_a_worker_that_would_begin_anew_is_not_believed(
    run: Run, hidden: str, reason: bytes
) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster() as both:
            expected = await both.stream(path, body)
            both.cables.cut_after, both.cables.num_cuts = 1500, 1
            setattr(both.cables, hidden, True)
            *events, error, done, rest = (await both.stream(path, body)).split(b"\n\n")
            assert expected.startswith(b"\n\n".join(events))
            assert reason in error
            assert (done, rest) == (b"data: [DONE]", b"")
            assert (both.resumes("resumed"), both.resumes("given_up")) == (0, 1)

    run(scenario)


def test_the_only_worker_goes_on_once_it_has_answered_a_health_check(run: Run) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster(num_workers=1) as alone:
            expected = await alone.stream(path, body)
            alone.cables.cut_after, alone.cables.num_cuts = 900, 1
            assert await alone.stream(path, body) == expected
            assert (alone.resumes("resumed"), alone.resumes("given_up")) == (1, 0)

    run(scenario)


@pytest.mark.parametrize(
    ("options", "more"),
    [({"max_resumes": 0}, {}), ({}, {"resume": None})],
)
def test_streams_that_are_not_resumed(
    run: Run, options: dict[str, Any], more: dict[str, Any]
) -> None:
    path, body = REQUESTS["generate"]

    async def scenario() -> None:
        async with cluster(**options) as both:
            both.cables.cut_after, both.cables.num_cuts = 1500, 1
            got = await both.stream(path, {**body, **more})
            assert b"worker_failed" in got
            assert got.endswith(b"data: [DONE]\n\n")
            assert not any(b"X-Baton-Marks" in asked for asked in both.cables.asked)
            assert both.metrics().count("baton_router_resumes_total{") == 0

    run(scenario)
