"""Health, facts, load and metrics."""

import asyncio
import logging

import pytest

from baton.api.state import ApiConfig
from baton.core.clock import FakeClock
from baton.testing.byte_tokenizer import BOS_ID
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker


async def text_of(worker: FakeWorker, path: str) -> str:
    async with worker.session.get(worker.url + path) as response:
        assert response.status == 200
        return await response.text()


def test_health() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            assert await text_of(worker, "/health") == "OK"
            assert await text_of(worker, "/liveness") == "OK"

    asyncio.run(scenario())


def test_a_draining_worker_says_so_and_serves_what_still_comes() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            worker.service.is_draining = True
            status, answer = await worker.get("/health")
            assert (status, answer["error"]["code"]) == (503, "draining")
            assert await text_of(worker, "/liveness") == "OK"
            assert (await worker.get("/server_info"))[1]["status"] == "draining"
            assert (await worker.post("/generate", {"text": "hello"}))[0] == 200

    asyncio.run(scenario())


def test_health_generate_makes_one_token_in_any_role() -> None:
    async def scenario() -> None:
        for role in ("null", "prefill", "decode"):
            engine = FakeEngine(role=role)  # type: ignore[arg-type]
            async with serve_fake_worker(engine) as worker:
                assert await text_of(worker, "/health_generate") == "OK"
                (probe,) = engine.requests
                assert probe.handover is None
                assert probe.prompt_token_ids == [BOS_ID]
                assert probe.sampling.max_new_tokens == 1

    asyncio.run(scenario())


def test_health_generate_gives_up_on_a_stuck_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=0)
        config = ApiConfig(health_generate_timeout_s=0.0)
        async with serve_fake_worker(engine, config=config) as worker:
            status, answer = await worker.get("/health_generate")
            assert (status, answer["error"]["code"]) == (503, "engine_stuck")
            await engine.until_idle()

    asyncio.run(scenario())


def test_load() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1, num_blocks=10, context_length=64)
        async with serve_fake_worker(engine) as worker:
            asked = asyncio.create_task(worker.post("/generate", {"text": "a" * 20}))
            await engine.until_running()
            _, (load,) = await worker.get("/get_load")
            assert load == {"dp_rank": 0, "num_reqs": 1, "num_waiting_reqs": 0, "num_tokens": 32}
            _, answer = await worker.get("/v1/loads")
            assert answer.keys() >= {"timestamp", "version", "loads"}
            (load,) = answer["loads"]
            assert (load["num_running_reqs"], load["num_total_tokens"]) == (1, 32)
            assert (load["max_total_num_tokens"], load["token_usage"]) == (160, 0.2)
            _, info = await worker.get("/server_info")
            assert info["kv_blocks"] == {
                "num_blocks": 10,
                "num_free": 8,
                "num_cached": 0,
                "num_in_use": 2,
            }
            assert info["max_total_num_tokens"] == 160
            assert info["context_length"] == 64
            assert info["pid"] > 1
            assert info["engine_pid"] == 1
            engine.resume()
            await asked

    asyncio.run(scenario())


def test_only_what_clients_do_is_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            for path in ("/health", "/server_info", "/get_model_info", "/v1/loads", "/metrics"):
                await text_of(worker, path)
            await worker.get("/v1/models")
            await worker.post("/server_info", {})

    caplog.set_level(logging.DEBUG, "baton.api")
    asyncio.run(scenario())
    levels = [record.levelname for record in caplog.records if record.getMessage() == "request"]
    assert levels == ["DEBUG"] * 5 + ["INFO"] * 2


def test_metrics() -> None:
    async def scenario() -> str:
        async with serve_fake_worker(clock=FakeClock()) as worker:
            await worker.post("/generate", {"text": "ab", "sampling_params": {"max_new_tokens": 4}})
            await worker.post("/generate", {"text": ""})
            await worker.post("/nowhere/123", {})
            return await text_of(worker, "/metrics")

    lines = asyncio.run(scenario()).splitlines()
    labels = 'engine_type="unified",model_name="fake-model"'
    for name, value in (
        ("sglang:num_requests_total", 1),
        ("sglang:num_aborted_requests_total", 0),
        ("sglang:num_running_reqs", 0),
        ("sglang:num_queue_reqs", 0),
        ("sglang:token_usage", 0),
        ("sglang:num_used_tokens", 0),
        ("sglang:cache_hit_rate", 0),
        ("sglang:gen_throughput", 0.4),  # 4 tokens in a window of 10 s
        ("sglang:prompt_tokens_total", 2),
        ("sglang:generation_tokens_total", 4),
        ("sglang:time_to_first_token_seconds_count", 1),
        ("sglang:inter_token_latency_seconds_count", 3),
        ("sglang:e2e_request_latency_seconds_count", 1),
        ("baton:preemptions_total", 0),
        ("baton:transfers_total", 0),
        ("baton:engine_alive", 1),
    ):
        found = [line for line in lines if line.startswith(f"{name}{{")]
        assert len(found) == 1, name
        assert float(found[0].rsplit(" ", 1)[1]) == value, found
        assert 'model_name="fake-model"' in found[0]
    assert f'baton:kv_blocks{{{labels},state="free"}} 1024.0' in lines
    assert f'baton:requests_finished_total{{{labels},reason="length"}} 1.0' in lines
    routes = [line for line in lines if line.startswith("baton:http_responses_total")]
    assert any('route="/generate",status="400"' in line for line in routes)
    assert any('route="unmatched",status="404"' in line for line in routes)
    assert not any("nowhere" in line for line in lines)
