"""The official `openai` client against router, prefill and decode worker, with the real model."""

import math

import openai
import pytest

from baton.testing.processes import Server

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture
def client(smol_pd: tuple[Server, Server, Server]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{smol_pd[0].url}/v1", api_key="none", max_retries=0)


def model_of(client: openai.OpenAI) -> str:
    return next(iter(client.models.list())).id


def test_chat_answers_a_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=model_of(client), messages=QUESTION, temperature=0, max_tokens=16
    )
    choice = answer.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_streams_the_same_text_with_usage(client: openai.OpenAI) -> None:
    options = {"model": model_of(client), "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_chat_logprobs_come_with_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=model_of(client),
        messages=QUESTION,
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
    )
    assert answer.usage is not None
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0 + 1e-6


def test_completions_echo_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=model_of(client),
        prompt="The capital of France is",
        max_tokens=3,
        temperature=0,
        logprobs=2,
        echo=True,
    )
    choice = answer.choices[0]
    assert choice.text.startswith("The capital of France is")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.tokens is not None
    assert answer.usage is not None
    assert len(choice.logprobs.tokens) == answer.usage.total_tokens
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])


def test_several_choices_and_seeds(client: openai.OpenAI) -> None:
    def three() -> list[str | None]:
        answer = client.chat.completions.create(
            model=model_of(client),
            messages=[{"role": "user", "content": "Name an animal."}],
            n=3,
            seed=11,
            temperature=1.0,
            max_tokens=12,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = three()
    assert len(set(first)) > 1
    assert three() == first


def test_stop_strings_end_the_text_before_themselves(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=model_of(client),
        prompt="1, 2, 3, 4, 5, 6,",
        max_tokens=40,
        temperature=0,
        stop=[" 9"],
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "8" in answer.choices[0].text
    assert "9" not in answer.choices[0].text


def test_errors_have_openais_shape_and_name_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as bad_value:
        client.chat.completions.create(model=model_of(client), messages=QUESTION, temperature=-1.0)
    assert bad_value.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.completions.create(model=model_of(client), prompt="word " * 9000)


def test_every_block_is_given_back(smol_pd: tuple[Server, Server, Server]) -> None:
    from baton.testing.processes import wait_until

    for server in smol_pd[1:]:
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
