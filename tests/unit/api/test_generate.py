"""POST|PUT /generate: SGLang's own route."""

import asyncio
import json
from typing import Any

import pytest

from baton.core.request import FAKE_BOOTSTRAP_HOST
from baton.testing.byte_tokenizer import BOS_ID, EOS_ID
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker


def generate(engine: FakeEngine, body: dict[str, Any]) -> tuple[int, Any]:
    async def scenario() -> tuple[int, Any]:
        async with serve_fake_worker(engine) as worker:
            return await worker.post("/generate", body)

    return asyncio.run(scenario())


def events(engine: FakeEngine, body: dict[str, Any]) -> list[str]:
    async def scenario() -> list[str]:
        async with serve_fake_worker(engine) as worker:
            return await worker.post_for_events("/generate", {**body, "stream": True})

    return asyncio.run(scenario())


def test_text_in_text_out() -> None:
    status, answer = generate(
        FakeEngine(num_cached_tokens=2),
        {"text": "abc", "rid": "r1", "sampling_params": {"max_new_tokens": 5}},
    )
    assert status == 200
    assert answer["text"] == "abcab"
    assert answer["output_ids"] == [97, 98, 99, 97, 98]
    meta = answer["meta_info"]
    assert meta.pop("e2e_latency") > 0
    assert meta == {
        "id": "r1",
        "finish_reason": {"type": "length", "length": 5},
        "prompt_tokens": 3,
        "weight_version": "default",
        "total_retractions": 0,
        "completion_tokens": 5,
        "cached_tokens": 2,
    }


def test_defaults() -> None:
    engine = FakeEngine()
    _, answer = generate(engine, {"input_ids": [97]})
    sampling = engine.requests[0].sampling
    assert answer["meta_info"]["completion_tokens"] == sampling.max_new_tokens == 128
    assert sampling.temperature == 1.0
    assert sampling.stop_token_ids == (EOS_ID,)
    assert sampling.num_top_logprobs is None
    assert engine.requests[0].handover is None


def test_missing_length_is_clipped_to_the_context() -> None:
    engine = FakeEngine(context_length=10)
    _, answer = generate(engine, {"text": "abc"})
    assert answer["meta_info"]["completion_tokens"] == 7


def test_put_is_post() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            async with worker.session.put(
                worker.url + "/generate",
                json={"text": "a", "sampling_params": {"max_new_tokens": 1}},
            ) as response:
                assert (await response.json())["text"] == "a"

    asyncio.run(scenario())


def test_batch_with_own_sampling_and_rids() -> None:
    engine = FakeEngine()
    status, answer = generate(
        engine,
        {
            "text": ["ab", "xyz"],
            "rid": ["r1", "r2"],
            "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2, "n": 2, "seed": 5}],
        },
    )
    assert status == 200
    assert [entry["text"] for entry in answer] == ["a", "xy", "xy"]
    assert [entry["meta_info"]["id"] for entry in answer] == ["r1", "r2-0", "r2-1"]
    seeds = {r.request_id: r.sampling.seed for r in engine.requests}
    assert (seeds["r2-0"], seeds["r2-1"]) == (5, 6)


def test_one_list_item_answers_a_list() -> None:
    for body in ({"text": ["a"]}, {"input_ids": [[97]]}):
        _, answer = generate(FakeEngine(), {**body, "sampling_params": {"max_new_tokens": 1}})
        assert [entry["text"] for entry in answer] == ["a"]


def test_seed_minus_one_asks_for_any() -> None:
    engine = FakeEngine()
    for sampling in ({"seed": -1}, {"sampling_seed": -1}):
        generate(engine, {"text": "a", "sampling_params": {**sampling, "max_new_tokens": 1}})
    first, second = (request.sampling.seed for request in engine.requests)
    assert first != second


def test_scalar_rid_of_several_samples() -> None:
    engine = FakeEngine()
    body = {"text": "a", "rid": "r", "sampling_params": {"n": 2, "max_new_tokens": 1}}
    _, answer = generate(engine, body)
    assert [entry["meta_info"]["id"] for entry in answer] == ["r-0", "r-1"]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[0] != seeds[1]


def test_stream_is_cumulative() -> None:
    payloads = events(FakeEngine(), {"text": "ab", "sampling_params": {"max_new_tokens": 3}})
    assert payloads[-1] == "[DONE]"
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    assert [chunk["text"] for chunk in chunks] == ["a", "ab", "aba"]
    assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3]
    assert [chunk["meta_info"]["finish_reason"] for chunk in chunks] == [
        None,
        None,
        {"type": "length", "length": 3},
    ]
    assert "index" not in chunks[0]


def test_stream_of_several_carries_index() -> None:
    payloads = events(FakeEngine(), {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 2}})
    last_text = {chunk["index"]: chunk["text"] for chunk in (json.loads(p) for p in payloads[:-1])}
    assert last_text == {0: "aa", 1: "bb"}


def test_logprobs() -> None:
    body = {
        "input_ids": [97, 98],
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
        "sampling_params": {"max_new_tokens": 2},
    }
    _, answer = generate(FakeEngine(), body)
    meta = answer["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 97, "a"], [-0.98, 98, "b"]]
    assert meta["output_token_logprobs"] == [[-0.97, 97, "a"], [-0.98, 98, "b"]]
    assert meta["input_top_logprobs"] == [None, [[-0.98, 98, "b"], [-0.99, 99, "c"]]]
    assert meta["output_top_logprobs"][0] == [[-0.97, 97, "a"], [-0.98, 98, "b"]]


def test_logprobs_default_to_the_output_only_and_no_text() -> None:
    engine = FakeEngine()
    body = {"text": "ab", "return_logprob": True, "sampling_params": {"max_new_tokens": 1}}
    _, answer = generate(engine, body)
    meta = answer["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert meta["output_token_logprobs"] == [[-0.97, 97, None]]
    assert "output_top_logprobs" not in meta
    assert engine.requests[0].prompt_logprobs_start is None


def test_logprobs_in_a_stream_are_cumulative() -> None:
    body = {"text": "ab", "return_logprob": True, "sampling_params": {"max_new_tokens": 2}}
    payloads = events(FakeEngine(), {**body, "logprob_start_len": 1})
    last = json.loads(payloads[-2])["meta_info"]
    assert last["input_token_logprobs"] == [[-0.98, 98, None]]
    assert last["output_token_logprobs"] == [[-0.97, 97, None], [-0.98, 98, None]]


def test_scoring_a_prompt_without_new_tokens() -> None:
    body = {
        "text": "ab",
        "return_logprob": True,
        "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": 0},
    }
    _, answer = generate(FakeEngine(), body)
    assert (answer["text"], answer["output_ids"]) == ("", [])
    assert answer["meta_info"]["input_token_logprobs"] == [[None, 97, None], [-0.98, 98, None]]
    assert answer["meta_info"]["output_token_logprobs"] == []
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_stop_token_counts_but_has_no_text() -> None:
    engine = FakeEngine(tokens=[97, 98, EOS_ID])
    _, answer = generate(engine, {"text": "x"})
    assert answer["text"] == "ab"
    assert answer["output_ids"] == [97, 98, EOS_ID]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS_ID}
    assert answer["meta_info"]["completion_tokens"] == 3


def test_kept_stop_token_and_ignored_end() -> None:
    engine = FakeEngine(tokens=[97, 98])
    sampling = {"stop_token_ids": [98], "no_stop_trim": True, "ignore_eos": True}
    _, answer = generate(engine, {"text": "x", "sampling_params": sampling})
    assert answer["text"] == "ab"
    assert engine.requests[0].sampling.stop_token_ids == (98,)


def test_stop_string_ends_the_request_in_the_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine(tokens=[ord(c) for c in "one STOP two"])
        async with serve_fake_worker(engine) as worker:
            _, answer = await worker.post(
                "/generate", {"text": "x", "rid": "r", "sampling_params": {"stop": ["STOP", "zz"]}}
            )
            assert answer["text"] == "one "
            assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "STOP"}
            assert answer["meta_info"]["completion_tokens"] == 8
            await engine.until_idle()
            assert engine.aborted == ["r"]

    asyncio.run(scenario())


def test_stop_string_does_not_depend_on_grouping() -> None:
    answers = []
    for size in (1, 3, 50):
        engine = FakeEngine(tokens=[ord(c) for c in "one STOP two"], tokens_per_output=size)
        body = {"text": "x", "rid": "r", "sampling_params": {"stop": "STOP", "no_stop_trim": True}}
        _, answer = generate(engine, body)
        del answer["meta_info"]["e2e_latency"]
        answers.append(answer)
    assert answers[0]["text"] == "one STOP"
    assert answers[0] == answers[1] == answers[2]


def test_stop_string_waits_for_the_minimum_length() -> None:
    engine = FakeEngine(tokens=[ord("a")])
    sampling = {"stop": "a", "min_new_tokens": 3, "max_new_tokens": 9}
    _, answer = generate(engine, {"text": "x", "sampling_params": sampling})
    assert answer["output_ids"] == [97, 97, 97]


def test_sampling_reaches_the_engine() -> None:
    engine = FakeEngine()
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {"97": 5},
        "sampling_seed": 11,
        "min_new_tokens": 2,
        "max_new_tokens": 3,
        "unknown": 1,
    }
    generate(engine, {"text": "x", "sampling_params": sampling, "priority": 4, "extra_key": "k"})
    request = engine.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
    assert (request.sampling.top_k, request.sampling.min_p) == (40, 0.1)
    assert request.sampling.frequency_penalty == 0.2
    assert request.sampling.presence_penalty == 0.3
    assert request.sampling.repetition_penalty == 1.1
    assert request.sampling.logit_bias == {97: 5.0}
    assert request.sampling.seed == 11
    assert request.sampling.min_new_tokens == 2
    assert request.priority == -4  # SGLang's higher-first order, in the engine's lower-first one
    assert request.cache_salt == "k"


def test_abort_request_ends_all_samples() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=2)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "rid": "r", "sampling_params": {"n": 3}}
            asked = asyncio.create_task(worker.post("/generate", body))
            await engine.until_running(3)
            status, answer = await worker.post("/abort_request", {"rid": "r"})
            assert (status, answer["num_aborted"]) == (200, 3)
            status, answer = await asked
            assert status == 499
            assert answer["error"]["code"] == "aborted"
            await engine.until_idle()
            assert worker.service.running.num_requests == 0

    asyncio.run(scenario())


def test_abort_all_and_unknown() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            assert (await worker.post("/abort_request", {"rid": "nobody"}))[1]["num_aborted"] == 0
            status, answer = await worker.post("/abort_request", {})
            assert (status, answer["error"]["param"]) == (400, "rid")
            asked = [asyncio.create_task(worker.post("/generate", {"text": t})) for t in "ab"]
            await engine.until_running(2)
            _, answer = await worker.post("/abort_request", {"abort_all": True})
            assert answer["num_aborted"] == 2
            assert [status for status, _ in await asyncio.gather(*asked)] == [499, 499]

    asyncio.run(scenario())


def test_abort_while_the_prefill_engine_is_looked_up() -> None:
    asking, go_on = asyncio.Event(), asyncio.Event()

    async def slow_resolve(host: str, port: int, room: int) -> str:
        asking.set()
        await go_on.wait()
        return "127.0.0.1:1"

    async def scenario() -> None:
        engine = FakeEngine(role="decode")
        async with serve_fake_worker(engine, resolve_prefill=slow_resolve) as worker:
            body = {"text": "a", "rid": "r", "bootstrap_host": "h", "bootstrap_room": 1}
            asked = asyncio.create_task(worker.post("/generate", body))
            await asking.wait()
            await worker.post("/abort_request", {"rid": "r"})
            go_on.set()
            status, _ = await asked
            assert status == 499
            assert engine.requests == []

    asyncio.run(scenario())


def test_flush_cache() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            for _ in range(2):
                status, answer = await worker.get("/flush_cache")
                assert (status, answer) == (200, {"success": True, "num_blocks_freed": 3})
            assert (await worker.post("/flush_cache", None))[0] == 200
            assert worker.engine.num_flushes == 3

    asyncio.run(scenario())


async def ask(worker: FakeWorker, **fields: Any) -> tuple[int, Any]:
    body = {"text": "ab", "sampling_params": {"max_new_tokens": 4, "min_new_tokens": 2}, **fields}
    return await worker.post("/generate", body)


def test_prefill_leg_makes_one_token_and_the_prompt_logprobs() -> None:
    async def scenario() -> None:
        engine = FakeEngine(role="prefill")
        async with serve_fake_worker(engine) as worker:
            status, answer = await ask(
                worker,
                bootstrap_room=7,
                return_logprob=True,
                logprob_start_len=0,
                sampling_params={"max_new_tokens": 4, "min_new_tokens": 2, "stop": "a"},
            )
            assert status == 200
            assert answer["output_ids"] == [97]
            assert answer["meta_info"]["input_token_logprobs"] == [
                [None, 97, None],
                [-0.98, 98, None],
            ]
            assert engine.aborted == []  # the stop string is decode's to match
            sampling = engine.requests[0].sampling
            assert (sampling.max_new_tokens, sampling.min_new_tokens) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_leg_says_how_long_its_transfer_went_on(stream: bool) -> None:
    async def scenario() -> None:
        for tokens, said in ((32, "32 0.250000"), (0, None)):
            engine = FakeEngine(role="prefill", transferred_tokens=tokens, transfer_s=0.25)
            async with serve_fake_worker(engine) as worker:
                body = {"text": "ab", "bootstrap_room": 7, "stream": stream}
                async with worker.session.post(f"{worker.url}/generate", json=body) as answer:
                    assert answer.status == 200
                    assert answer.headers.get("X-Baton-Transfer") == said

    asyncio.run(scenario())


def test_decode_leg_leaves_prompt_logprobs_to_prefill() -> None:
    async def scenario() -> None:
        engine = FakeEngine(role="decode")
        async with serve_fake_worker(engine) as worker:
            _, answer = await ask(
                worker,
                bootstrap_room=7,
                bootstrap_host="prefill",
                return_logprob=True,
                logprob_start_len=0,
            )
            assert answer["meta_info"]["input_token_logprobs"] == []
            assert len(answer["meta_info"]["output_token_logprobs"]) == 4

    asyncio.run(scenario())


def test_probe_of_a_pair_runs_here() -> None:
    async def scenario() -> None:
        for role in ("prefill", "decode"):
            engine = FakeEngine(role=role)  # type: ignore[arg-type]
            async with serve_fake_worker(engine) as worker:
                status, _ = await ask(worker, bootstrap_host=FAKE_BOOTSTRAP_HOST, bootstrap_room=0)
                assert status == 200
                assert engine.requests[0].handover is None

    asyncio.run(scenario())


def test_resolver_is_asked_with_the_default_port_once_per_room() -> None:
    asked: list[tuple[str, int, int]] = []

    async def resolve(host: str, port: int, room: int) -> str:
        asked.append((host, port, room))
        return f"{host}:{room}"

    async def scenario() -> None:
        engine = FakeEngine(role="decode")
        async with serve_fake_worker(engine, resolve_prefill=resolve) as worker:
            status, _ = await ask(
                worker,
                text=["a", "b", "c"],
                bootstrap_host=["h1", "h2", "h1"],
                bootstrap_port=[None, 9000, None],
                bootstrap_room=[5, 6, 5],
            )
            assert status == 200
            assert sorted(asked) == [("h1", 8998, 5), ("h2", 9000, 6)]
            peers = {
                r.handover.sample_index: r.handover.peer_address
                for r in engine.requests
                if r.handover
            }
            assert peers == {0: "h1:5", 1: "h2:6", 2: "h1:5"}

    asyncio.run(scenario())


def test_bos_token_is_not_added_to_given_ids() -> None:
    engine = FakeEngine()
    generate(engine, {"input_ids": [BOS_ID, 97], "sampling_params": {"max_new_tokens": 1}})
    assert engine.requests[0].prompt_token_ids == [BOS_ID, 97]
