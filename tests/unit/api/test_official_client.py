"""The official `openai` client against a worker."""

import asyncio

import openai
import pytest

from baton.testing.byte_tokenizer import EOS_ID
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker

HI = [{"role": "user", "content": "hi"}]


def says(text: str) -> FakeEngine:
    return FakeEngine(tokens=[*text.encode(), EOS_ID], num_cached_tokens=3)


def client_of(worker: FakeWorker) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0)


def test_chat() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(says("hello")) as worker, client_of(worker) as client:
            answer = await client.chat.completions.create(
                model="fake-model",
                messages=HI,  # type: ignore[arg-type]
                logprobs=True,
                top_logprobs=2,
                n=2,
            )
            assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
            assert answer.choices[0].finish_reason == "stop"
            assert answer.choices[0].logprobs is not None
            content = answer.choices[0].logprobs.content
            assert content is not None
            assert "".join(entry.token for entry in content) == "hello</s>"
            assert len(content[0].top_logprobs) == 2
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens_details.cached_tokens == 3

    asyncio.run(scenario())


def test_chat_stream() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(says("hello")) as worker, client_of(worker) as client:
            stream = await client.chat.completions.create(
                model="fake-model",
                messages=HI,  # type: ignore[arg-type]
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == "hello"
            assert chunks[0].choices[0].delta.role == "assistant"
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == 6

    asyncio.run(scenario())


def test_completion_and_its_stream() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(says("hello")) as worker, client_of(worker) as client:
            answer = await client.completions.create(
                model="fake-model", prompt=["a", "b"], logprobs=1, echo=True
            )
            assert [choice.text for choice in answer.choices] == ["ahello", "bhello"]
            assert answer.choices[0].logprobs is not None
            assert answer.choices[0].logprobs.token_logprobs is not None
            stream = await client.completions.create(model="fake-model", prompt="a", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello"

    asyncio.run(scenario())


def test_models() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker, client_of(worker) as client:
            assert [model.id async for model in client.models.list()] == ["fake-model"]
            assert (await client.models.retrieve("fake-model")).owned_by == "baton"

    asyncio.run(scenario())


def test_errors_have_their_classes() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker, client_of(worker) as client:
            with pytest.raises(openai.NotFoundError) as not_found:
                await client.completions.create(model="other", prompt="a")
            assert not_found.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model="fake-model", prompt="a", temperature=-1)
            assert bad.value.param == "temperature"

    asyncio.run(scenario())
