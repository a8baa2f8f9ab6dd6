"""Marks of a stream, and a stream that goes on where another worker's broke off."""

import asyncio
from typing import Any

import pytest

from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import serve_fake_worker

SAMPLING = {"max_new_tokens": 6, "temperature": 0}
MARKS = {"X-Baton-Marks": "1"}


def stream(
    engine: FakeEngine, path: str, body: dict[str, Any], headers: dict[str, str]
) -> tuple[str, str | None]:
    """The whole stream and what its head says of marks."""

    async def scenario() -> tuple[str, str | None]:
        async with (
            serve_fake_worker(engine) as worker,
            worker.session.post(
                worker.url + path, json={**body, "stream": True}, headers=headers
            ) as response,
        ):
            assert response.status == 200, await response.text()
            return await response.text(), response.headers.get("X-Baton-Marks")

    return asyncio.run(scenario())


def marks(said: str) -> list[str]:
    return [frame for frame in said.split("\n\n") if frame.startswith(": ")]


GENERATE = {"text": "abc", "rid": "r", "sampling_params": {**SAMPLING, "seed": 9}}


def test_every_step_but_the_last_is_marked() -> None:
    said, head = stream(FakeEngine(), "/generate", GENERATE, MARKS)
    assert marks(said) == [": t 97", ": t 98", ": t 99", ": t 97", ": t 98"]
    assert head == "9 0 r"


def test_half_a_character_is_marked_with_the_event_that_shows_it() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 6}
    tokens = list("a€bc".encode())
    said, head = stream(FakeEngine(tokens=tokens), "/v1/chat/completions", body, MARKS)
    assert marks(said) == [": t 97", ": t 226 130 172", ": t 98"]
    assert head is not None
    assert int(head.split()[1]) > 1_700_000_000


@pytest.mark.parametrize(
    ("engine", "more", "headers"),
    [
        (FakeEngine(), {}, {}),
        (FakeEngine(), {"sampling_params": {**SAMPLING, "n": 2}}, {}),
        (FakeEngine(role="prefill"), {"bootstrap_room": 1, "bootstrap_host": "h"}, MARKS),
    ],
)
def test_streams_without_marks(
    engine: FakeEngine, more: dict[str, Any], headers: dict[str, str]
) -> None:
    said, head = stream(engine, "/generate", {**GENERATE, **more}, headers)
    assert (marks(said), head) == ([], None)


def test_prefill_makes_the_next_token() -> None:
    engine = FakeEngine(role="prefill")
    pair = {"bootstrap_room": 1, "bootstrap_host": "h", "resume": {"token_ids": [97, 98]}}
    stream(engine, "/generate", {**GENERATE, **pair}, {})
    (asked,) = engine.requests
    assert asked.prompt_token_ids == [97, 98, 99, 97, 98]
    assert (asked.num_prompt_tokens, asked.resumed_token_ids) == (3, [97, 98])
    assert (asked.sampling.max_new_tokens, asked.sampling.seed) == (3, 9)


@pytest.mark.parametrize(
    ("resume", "more", "param", "named"),
    [
        ({"token_ids": [97] * 6}, {}, "resume.token_ids", "ends after 6"),
        ({"token_ids": [97, 9999]}, {}, "resume.token_ids", "9999"),
        ({"token_ids": [-1]}, {}, "resume.token_ids", "-1"),
        ({"token_ids": ["a"]}, {}, "resume.token_ids[0]", "int"),
        ({}, {}, "resume", "either token_ids"),
        ({"token_ids": [97], "samples": []}, {}, "resume", "either token_ids"),
        ({"samples": [{"index": 1, "token_ids": []}]}, {}, "resume.samples[0].index", "the 1 sam"),
        (
            {"samples": [{"token_ids": []}, {"index": 0, "token_ids": []}]},
            {},
            "resume.samples[1].index",
            "at most once",
        ),
        ({"samples": [{"token_ids": [9999]}]}, {}, "resume.samples[0].token_ids", "9999"),
        ({"token_ids": [97]}, {"stream": False}, "resume", "stream is false"),
        ({"samples": []}, {"stream": False}, "resume", "stream is false"),
        (
            {"token_ids": [97]},
            {"sampling_params": {**SAMPLING, "n": 2}},
            "resume",
            "this request has 2",
        ),
        (
            {"token_ids": [97, 98]},
            {"sampling_params": {**SAMPLING, "stop": "ab"}},
            "resume.token_ids",
            "'ab'",
        ),
    ],
)
def test_what_cannot_be_resumed(
    resume: dict[str, Any], more: dict[str, Any], param: str, named: str
) -> None:
    async def scenario() -> tuple[int, Any]:
        async with serve_fake_worker() as worker:
            return await worker.post(
                "/generate", {"stream": True, **GENERATE, "resume": resume, **more}
            )

    status, answer = asyncio.run(scenario())
    assert status == 400, answer
    assert answer["error"]["param"] == param
    assert named in answer["error"]["message"]


PAIR = {"bootstrap_room": 5, "bootstrap_host": "h"}


@pytest.mark.parametrize("role", ["null", "prefill", "decode"])
def test_of_several_samples_only_those_run_that_have_not_ended(role: Any) -> None:
    engine = FakeEngine(role=role)
    body = {
        "prompt": ["abc", "abc", "abc"],
        "max_tokens": 6,
        "stream_options": {"include_usage": True},
        "resume": {
            "samples": [
                {"index": 2, "token_ids": [97]},
                {"index": 1, "token_ids": [97, 98], "is_done": True},
            ],
            "seed": 40,
            "id": "x",
        },
        **({} if role == "null" else PAIR),
    }
    said, _ = stream(engine, "/v1/completions", body, {})
    asked = sorted(engine.requests, key=lambda request: request.sampling.seed)
    assert [request.sampling.seed for request in asked] == [40, 42]
    assert [request.resumed_token_ids for request in asked] == [[], [97]]
    if role != "prefill":
        assert '"completion_tokens":14' in said
        assert '"index":1' not in said


def test_all_samples_have_ended_and_only_the_end_is_missing() -> None:
    engine = FakeEngine()
    done = [{"index": index, "token_ids": [97], "is_done": True} for index in range(2)]
    body = {**GENERATE, "sampling_params": {**SAMPLING, "n": 2}, "resume": {"samples": done}}
    said, _ = stream(engine, "/generate", body, MARKS)
    assert said == "data: [DONE]\n\n"
    assert not engine.requests


def test_each_sample_has_marks_and_an_end_of_its_own() -> None:
    body = {
        "prompt": ["abc", "xyz"],
        "max_tokens": 2,
        "seed": 3,
    }
    said, head = stream(FakeEngine(), "/v1/completions", body, MARKS)
    assert head is not None
    assert head.startswith("samples 3 ")
    assert sorted(marks(said)) == [": t/0 97", ": t/0 98 end", ": t/1 120", ": t/1 121 end"]


@pytest.mark.parametrize(
    ("logprobs", "named"),
    [
        (None, "0 entries for 1 tokens"),
        ({"output_token_logprobs": [[-1, 97, None]] * 2}, "2 entries for 1 tokens"),
        (
            {
                "output_token_logprobs": [[-1, 97, None]],
                "output_top_logprobs": [None, None],
            },
            "output_top_logprobs has 2 entries for 1",
        ),
    ],
)
def test_logprobs_that_events_repeat_must_come_along(logprobs: Any, named: str) -> None:
    async def scenario() -> tuple[int, Any]:
        sample = {"token_ids": [97], "logprobs": logprobs}
        body = {"stream": True, **GENERATE, "return_logprob": True, "resume": {"samples": [sample]}}
        async with serve_fake_worker() as worker:
            return await worker.post("/generate", body)

    status, answer = asyncio.run(scenario())
    assert (status, answer["error"]["param"]) == (400, "resume.samples[0].logprobs")
    assert named in answer["error"]["message"]
