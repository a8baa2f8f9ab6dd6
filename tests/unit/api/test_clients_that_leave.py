"""A client that is gone frees its engine requests at once; events go out when they exist."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """Runs a scenario on either event loop; a client that leaves is no warning on any."""

    def run_scenario(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scenario, 30))

    yield run_scenario
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@asynccontextmanager
async def sent_request(
    worker: FakeWorker, body: dict[str, Any]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    payload = json.dumps(body).encode()
    head = (
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(head.encode() + payload)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("pause_after", [0, 2])
def test_leaving_aborts(run: Run, num_samples: int, is_streaming: bool, pause_after: int) -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=pause_after)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "stream": is_streaming, "sampling_params": {"n": num_samples}}
            async with sent_request(worker, body) as (reader, _):
                await engine.until_running(num_samples)
                if is_streaming and pause_after:
                    await reader.readuntil(b"data: ")
            await engine.until_idle()
            assert len(engine.aborted) == num_samples
        assert worker.service.running.num_requests == 0
        line = 'aborted_requests_total{engine_type="unified",model_name="fake-model"}'
        assert f"{line} {float(num_samples)}" in worker.service.metrics.render().decode()

    run(scenario())


def test_leaving_during_the_lookup_of_the_prefill_engine(run: Run) -> None:
    asking, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(host: str, port: int, room: int) -> str:
        asking.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    async def scenario() -> None:
        engine = FakeEngine(role="decode")
        async with serve_fake_worker(engine, resolve_prefill=hang) as worker:
            body = {"text": "a", "bootstrap_host": "h", "bootstrap_room": 1}
            async with sent_request(worker, body):
                await asking.wait()
            await cancelled.wait()
            assert engine.requests == []

    run(scenario())


def test_the_first_event_does_not_wait_for_the_second(run: Run) -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 2}}
            async with sent_request(worker, body) as (reader, _):
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"Cache-Control: no-cache" in head
                assert b"text/event-stream" in head
                first = await reader.readuntil(b"\n\n")
                assert b'"text":"a"' in first
                assert engine.running_ids  # the second token is still at the gate
                engine.resume()
                assert b'"text":"aa"' in await reader.readuntil(b"\n\n")
                assert b"[DONE]" in await reader.readuntil(b"\n\n")

    run(scenario())


def test_a_client_that_does_not_read_holds_up_only_itself(run: Run) -> None:
    """Its events stay in the engine client, so another client's request is served meanwhile."""

    async def scenario() -> None:
        engine = FakeEngine(context_length=10_000_000, num_blocks=1_000_000)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 1_000_000}}
            async with sent_request(worker, body):
                await engine.until_running()
                other = {"text": "b", "sampling_params": {"max_new_tokens": 3}}
                status, answer = await worker.post("/generate", other)
                assert (status, answer["text"]) == (200, "bbb")
            await engine.until_idle()

    run(scenario())


def test_leaving_while_events_flow(run: Run) -> None:
    async def scenario() -> None:
        engine = FakeEngine(context_length=10_000_000, num_blocks=1_000_000)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 1_000_000}}
            for num_events in (1, 2, 10):
                async with sent_request(worker, body) as (reader, _):
                    for _ in range(num_events):
                        await reader.readuntil(b"\n\n")
                await engine.until_idle()
        assert len(engine.aborted) == 3

    run(scenario())
