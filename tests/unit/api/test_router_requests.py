"""Bodies exactly as SGLang's router 0.3.2 sends them, against workers of both roles."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baton.core.request import Handover
from baton.core.sampling import MAX_SEED
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FAKE_CONTROL_ADDRESS, events_of, serve_fake_worker

CAPTURED = json.loads(
    (Path(__file__).parent / "data" / "sglang_router_requests.json").read_text("utf-8")
)
REFUSED = {"19_chat_image": 404, "21_generate_bad_json": 400}


def named(entry: dict[str, Any]) -> str:
    return f"{entry['name']}-{entry['role']}"


@pytest.mark.parametrize("entry", CAPTURED, ids=named)
def test_every_captured_request_is_answered(entry: dict[str, Any]) -> None:
    async def scenario() -> None:
        engine = FakeEngine(role=entry["role"])
        async with serve_fake_worker(engine) as worker:
            async with worker.session.post(
                worker.url + entry["path"], json=entry["body"], headers=entry["headers"]
            ) as response:
                text = await response.text()
                assert response.status == REFUSED.get(entry["name"], 200), text
                assert response.headers["X-Request-ID"] == "rid-1"
            if response.status != 200:
                return
            if entry["body"]["stream"]:
                assert events_of(text)[-1] == "[DONE]"
            check_engine_requests(engine, entry)

    asyncio.run(scenario())


def check_engine_requests(engine: FakeEngine, entry: dict[str, Any]) -> None:
    rooms = entry["body"]["bootstrap_room"]
    count = len(engine.requests)
    expected_rooms = rooms if isinstance(rooms, list) else [rooms] * count
    peer = FAKE_CONTROL_ADDRESS if entry["role"] == "decode" else ""
    by_index = sorted(engine.requests, key=lambda r: r.handover.sample_index if r.handover else -1)
    for index, (request, room) in enumerate(zip(by_index, expected_rooms, strict=True)):
        assert request.handover == Handover(room=room, sample_index=index, peer_address=peer)
        assert request.sampling.seed == (expected_rooms[0] + index) & MAX_SEED
        if entry["role"] == "prefill":
            assert request.sampling.max_new_tokens == 1


def legs() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in CAPTURED:
        by_name.setdefault(entry["name"], {})[entry["role"]] = entry
    return [(e["prefill"], e["decode"]) for name, e in by_name.items() if name not in REFUSED]


@pytest.mark.parametrize(("prefill", "decode"), legs(), ids=lambda entry: entry["name"])
def test_both_legs_agree(prefill: dict[str, Any], decode: dict[str, Any]) -> None:
    """Same prompts, seeds and hand-over keys, in the same order."""

    async def requests_of(entry: dict[str, Any]) -> list[tuple[object, ...]]:
        engine = FakeEngine(role=entry["role"])
        async with serve_fake_worker(engine) as worker:
            async with worker.session.post(
                worker.url + entry["path"], json=entry["body"]
            ) as response:
                await response.read()
        return sorted(
            (r.handover.room, r.handover.sample_index, r.prompt_token_ids, r.sampling.seed)
            for r in engine.requests
            if r.handover
        )

    prefill_requests = asyncio.run(requests_of(prefill))
    assert prefill_requests
    assert prefill_requests == asyncio.run(requests_of(decode))


def test_router_probes_at_start() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(FakeEngine(role="prefill")) as worker:
            async with worker.session.get(worker.url + "/health") as response:
                assert response.status == 200
            status, server_info = await worker.get("/server_info")
            assert status == 200
            assert server_info["served_model_name"] == "fake-model"
            assert server_info["disaggregation_mode"] == "prefill"
            assert server_info["disaggregation_bootstrap_port"] == 8998
            assert server_info["tp_size"] == server_info["dp_size"] == 1
            assert (await worker.get("/get_server_info"))[1].keys() == server_info.keys()
            status, model_info = await worker.get("/model_info")
            assert status == 200
            assert model_info["model_path"] == "fake-model.gguf"
            assert model_info["architectures"] == ["FakeForCausalLM"]
            assert (await worker.get("/get_model_info"))[1] == model_info

    asyncio.run(scenario())
