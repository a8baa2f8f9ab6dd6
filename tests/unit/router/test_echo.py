"""Completions with `echo` and `logprobs`: a pair behind the router answers as one worker does.

The workers' HTTP layer is the real one, over engines that make the same tokens in every role.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from baton.router.app import RouterApp
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.testing.byte_tokenizer import EOS_ID
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, events_of, serve_fake_worker

from .conftest import FAST_PROBES, serving

PATH = "/v1/completions"
CHOICE_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

Run = Callable[[Callable[[], Any]], None]


@contextlib.asynccontextmanager
async def pair(**settings: Any) -> AsyncIterator[tuple[str, FakeWorker]]:
    """A router's URL, and its decode worker."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [FakeEngine(role=role, **settings) for role in ("prefill", "decode")]
        prefill, decode = [
            await stack.enter_async_context(serve_fake_worker(engine)) for engine in engines
        ]
        specs = (
            WorkerSpec(prefill.url, WorkerRole.PREFILL, 8998),
            WorkerSpec(decode.url, WorkerRole.DECODE),
        )
        app = RouterApp(RouterConfig(workers=specs, pd_disaggregation=True, health=FAST_PROBES))
        url = await stack.enter_async_context(serving(app))
        await app.fleet.until(lambda pool: sum(worker.is_healthy for worker in pool) == 2)
        yield url, decode


async def choices_from(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer; those of a stream put together from its events."""
    async with aiohttp.ClientSession() as session:
        async with session.post(url + PATH, json=body) as response:
            text = await response.text()
            assert response.status == 200, text
    if not body.get("stream"):
        choices: list[dict[str, Any]] = json.loads(text)["choices"]
        return choices
    *payloads, done = events_of(text)
    assert done == "[DONE]"
    return put_together([c for payload in payloads for c in json.loads(payload)["choices"]])


def put_together(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        so_far = choices.setdefault(delta["index"], delta)
        if so_far is delta:
            continue
        so_far["text"] += delta["text"]
        for name in ("finish_reason", "matched_stop"):
            so_far[name] = delta[name]
        for name in CHOICE_LISTS:
            if so_far["logprobs"] and so_far["logprobs"][name] is not None:
                so_far["logprobs"][name] += delta["logprobs"][name]
    return [choices[index] for index in sorted(choices)]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "hello", "logprobs": 0},
        {"prompt": "hello", "logprobs": 2, "n": 3},
        {"prompt": ["one", "two three"], "logprobs": 1, "n": 2},
        {"prompt": [[104, 105], [106]], "logprobs": 1},
        {"prompt": "h\u00e9llo \u20ac", "logprobs": 1},
        {"prompt": "x", "logprobs": 1},
        {"prompt": "hello", "logprobs": 1, "max_tokens": 0},
        {"prompt": "hello", "logprobs": 1, "max_tokens": 1},
        {"prompt": "hello", "logprobs": 1, "stop": ["c"]},
        {"prompt": "hello"},
    ],
)
def test_a_pair_answers_as_one_worker(run: Run, asked: dict[str, Any], streams: bool) -> None:
    async def scenario() -> None:
        tokens = [*b"abcd", EOS_ID]
        body = {"echo": True, "seed": 1, "stream": streams, **asked}
        async with serve_fake_worker(FakeEngine(tokens=tokens)) as unified:
            expected = await choices_from(unified.url, body)
        async with pair(tokens=tokens) as (url, _):
            assert await choices_from(url, body) == expected
        num_listed = len((expected[0]["logprobs"] or {"tokens": []})["tokens"])
        assert (num_listed > 0) == ("logprobs" in asked)

    run(scenario)


def test_behind_a_router_that_does_not_merge_only_the_prompts_logprobs_are_missing(
    run: Run,
) -> None:
    async def scenario() -> None:
        async with pair(tokens=[*b"abc", EOS_ID]) as (_, decode):
            body = {"prompt": "hello", "echo": True, "logprobs": 0, "max_tokens": 2}
            paired = {"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": 2}
            (choice,) = await choices_from(decode.url, body | paired)
        assert choice["text"] == "helloab"
        assert choice["logprobs"]["tokens"] == ["a", "b"]
        assert choice["logprobs"]["text_offset"] == [5, 6]

    run(scenario)
