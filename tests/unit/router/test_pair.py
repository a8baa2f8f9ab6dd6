"""A request on a pair of workers: what both get, and what the client gets, when all goes well."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello", "sampling_params": {"max_new_tokens": 8}}


def test_a_batch_of_texts_is_served(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            status, _, body = await c.post("/generate", {"text": ["a", "b"]})
            assert (status, len(json.loads(body))) == (200, 2)
            rooms = c.decodes[0].requests[0].body["bootstrap_room"]
            assert len(set(rooms)) == 2
            assert all(0 <= room < 2**63 for room in rooms)

    run(scenario)


def test_stream_is_decodes_byte_for_byte(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            body = {**GENERATE, "stream": True}
            status, headers, through = await c.post("/generate", body)
            async with c.session.post(c.decodes[0].url + "/generate", json=body) as direct:
                assert through == await direct.read()
            assert (status, headers["Content-Type"]) == (200, "text/event-stream")
            assert headers["X-Request-ID"].startswith("req-")
            assert "X-Request-ID" in c.prefills[0].requests[0].headers
            await c.until_quiet()

    run(scenario)


def test_a_prefill_leg_nobody_waits_for_has_a_limit(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(prefill_drain_limit_s=0.01) as c:
            c.prefills[0].script = Script(gates={0: asyncio.Event()})
            assert (await c.post("/generate", GENERATE))[0] == 200
            await c.prefills[0].until(lambda w: w.num_hung_up == 1)
            await c.until_quiet()

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_logprobs_come_from_prefill(run: Run, cluster: ClusterMaker, stream: bool) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            body = {**GENERATE, "return_logprob": True, "stream": stream}
            may_answer = asyncio.Event()
            c.prefills[0].script = Script(gates={0: may_answer})
            asked = asyncio.create_task(c.post("/generate", body))
            await c.decodes[0].until(lambda w: len(w.requests) == 1)
            may_answer.set()
            _, _, answer = await asked
            last = answer.split(b"\n\n")[-3][5:] if stream else answer
            meta = json.loads(last)["meta_info"]
            assert meta["input_token_logprobs"] == [[None, 1, None], [-0.5, 2, None]]
            assert len(meta["output_token_logprobs"]) == 8

    run(scenario)


def test_round_robin_uses_all_workers_of_each_role(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(2, 3, policy="round_robin") as c:
            for _ in range(6):
                await c.post("/generate", GENERATE)
            assert [len(w.requests) for w in c.prefills] == [3, 3]
            assert [len(w.requests) for w in c.decodes] == [2, 2, 2]

    run(scenario)


def test_least_loaded_avoids_the_busy_decode_worker(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 2) as c:
            may_answer = asyncio.Event()
            for decode in c.decodes:
                decode.script = Script(gates={0: may_answer})
            first = asyncio.create_task(c.post("/generate", GENERATE))
            await c.prefills[0].until(lambda w: len(w.requests) == 1)
            second = asyncio.create_task(c.post("/generate", GENERATE))
            await c.prefills[0].until(lambda w: len(w.requests) == 2)
            may_answer.set()
            await asyncio.gather(first, second)
            assert [len(d.requests) for d in c.decodes] == [1, 1]

    run(scenario)


def test_big_bodies_pass_unchanged(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            text = "ü" * 2_000_000
            assert (await c.post("/generate", {"text": text}))[0] == 200
            assert c.decodes[0].requests[0].body["text"] == text
            assert c.prefills[0].requests[0].body["text"] == text

    run(scenario)
