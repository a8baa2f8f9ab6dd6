"""OpenAI's routes as plain JSON, with SGLang's extensions."""

import asyncio
import json
from typing import Any

import pytest

from baton.core.request import Role
from baton.testing.byte_tokenizer import BOS_ID, EOS_ID
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import serve_fake_worker

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
PAIRED = {"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": 2}


def post(engine: FakeEngine, path: str, **body: Any) -> Any:
    async def scenario() -> Any:
        async with serve_fake_worker(engine) as worker:
            status, answer = await worker.post(path, body)
            assert status == 200, answer
            return answer

    return asyncio.run(scenario())


def stream(engine: FakeEngine, path: str, **body: Any) -> list[Any]:
    async def scenario() -> list[Any]:
        async with serve_fake_worker(engine) as worker:
            payloads = await worker.post_for_events(path, {**body, "stream": True})
            assert payloads[-1] == "[DONE]"
            return [json.loads(payload) for payload in payloads[:-1]]

    return asyncio.run(scenario())


def prompt_text(engine: FakeEngine, index: int = 0) -> str:
    return bytes(i for i in engine.requests[index].prompt_token_ids if i < 256).decode()


def says(text: str) -> FakeEngine:
    return FakeEngine(tokens=[*text.encode(), EOS_ID])


def test_null_content_beside_tool_calls_is_no_text() -> None:
    engine = says("42")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "six by seven"},
    ]
    post(engine, CHAT, messages=messages)
    assert "six by seven" in prompt_text(engine)
    assert "None" not in prompt_text(engine)


def test_chat() -> None:
    engine = says("hello")
    answer = post(engine, CHAT, messages=HI, model="fake-model", user="u", metadata={"a": 1})
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": EOS_ID,
        }
    ]
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert answer["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 6,
        "total_tokens": num_prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert engine.requests[0].prompt_token_ids.count(BOS_ID) == 1
    assert prompt_text(engine) == "user\nhiassistant\n"


def test_chat_without_a_length_may_use_the_whole_context() -> None:
    engine = FakeEngine(context_length=64, tokens=[97])
    answer = post(engine, CHAT, messages=HI)
    assert answer["usage"]["total_tokens"] == 64


def test_chat_length_names() -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = post(FakeEngine(), CHAT, messages=HI, **{field: 3})
        assert answer["usage"]["completion_tokens"] == 3
    answer = post(FakeEngine(), CHAT, messages=HI, max_tokens=9, max_completion_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2


def test_chat_content_parts_and_tools_reach_the_template() -> None:
    engine = says("x")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    post(
        engine,
        CHAT,
        messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": None}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="auto",
        chat_template_kwargs={"enable_thinking": False},
    )
    assert prompt_text(engine) == "user\none twoassistant\nassistant\n"


def test_chat_continues_the_final_message() -> None:
    engine = says("x")
    messages = [*HI, {"role": "assistant", "content": "Once"}]
    post(engine, CHAT, messages=messages, continue_final_message=True)
    assert prompt_text(engine).endswith("assistant\nOnce")
    engine = says("x")
    post(engine, CHAT, messages=HI, add_generation_prompt=False)
    assert prompt_text(engine) == "user\nhi"


def test_chat_n_with_logprobs() -> None:
    answer = post(says("é"), CHAT, messages=HI, n=2, logprobs=True, top_logprobs=2, seed=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    content = answer["choices"][1]["logprobs"]["content"]
    first = content[0]
    assert first["bytes"] == ["é".encode()[0]]
    assert first["logprob"] == -1.95
    assert len(first["top_logprobs"]) == 2
    assert len(content) == 3  # two bytes and the end token
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["choices"][0]["message"]["content"] == "é"


def test_chat_stream() -> None:
    chunks = stream(says("hé!"), CHAT, messages=HI, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["h", "é", "!"]
    assert deltas[-1] == {}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_chat_stream_with_usage_in_every_chunk_and_without_any() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(says("abc"), CHAT, messages=HI, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert all("usage" not in chunk for chunk in stream(says("abc"), CHAT, messages=HI))


def test_chat_stream_of_several() -> None:
    chunks = stream(says("abc"), CHAT, messages=HI, n=2, logprobs=True)
    texts = {0: "", 1: ""}
    roles, ends = [], []
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == {0: "abc", 1: "abc"}
    assert sorted(roles) == sorted(ends) == [0, 1]


def test_completion_defaults_to_sixteen_tokens() -> None:
    answer = post(FakeEngine(), COMPLETIONS, prompt="ab")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "ab" * 8
    assert answer["choices"][0]["finish_reason"] == "length"


def test_completion_prompt_kinds() -> None:
    for prompt, texts in (
        ("a", ["aa"]),
        (["a", "b"], ["aa", "bb"]),
        ([97, 98], ["ab"]),
        ([[97], [98]], ["aa", "bb"]),
    ):
        answer = post(FakeEngine(), COMPLETIONS, prompt=prompt, max_tokens=2)
        assert [choice["text"] for choice in answer["choices"]] == texts
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))


def test_completion_usage_counts_each_prompt_once() -> None:
    engine = FakeEngine(num_cached_tokens=1)
    answer = post(engine, COMPLETIONS, prompt=["aa", "bbb"], n=2, max_tokens=2)
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert [choice["text"] for choice in answer["choices"]] == ["aa", "aa", "bb", "bb"]


def test_completion_logprobs() -> None:
    answer = post(says("abcabc"), COMPLETIONS, prompt="x", logprobs=2, max_tokens=2)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.97, -0.98],
        "top_logprobs": [{"a": -0.97, "b": -0.98}, {"b": -0.98, "c": -0.99}],
        "text_offset": [0, 1],
    }
    answer = post(says("abcabc"), COMPLETIONS, prompt="x", logprobs=0, max_tokens=1)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] is None


def test_completion_echo_with_prompt_logprobs() -> None:
    answer = post(says("ab"), COMPLETIONS, prompt="xy", echo=True, logprobs=0, max_tokens=1)
    choice = answer["choices"][0]
    assert choice["text"] == "xya"
    assert choice["logprobs"]["tokens"] == ["x", "y", "a"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.21, -0.97]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_completion_echo_alone() -> None:
    engine = says("a")
    answer = post(engine, COMPLETIONS, prompt=[[120], [121]], echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["xa", "ya"]
    assert engine.requests[0].prompt_logprobs_start is None


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("role", "tokens", "offsets"),
    [("prefill", ["x", "\ufffd", "\ufffd", "a"], [0, 1, 2, 3]), ("decode", ["a", "b"], [3, 4])],
)
def test_the_legs_of_an_echo_list_what_each_computed(
    role: Role, tokens: list[str], offsets: list[int], streams: bool
) -> None:
    """Offsets of decode's tokens leave room for the prompt's, so that the lists fit together."""
    engine = FakeEngine(role=role, tokens=[*b"ab", EOS_ID])
    body = {"prompt": "x\u00e9", "echo": True, "logprobs": 1, "max_tokens": 2, **PAIRED}
    if streams:
        choices = [chunk["choices"][0] for chunk in stream(engine, COMPLETIONS, **body)]
    else:
        choices = post(engine, COMPLETIONS, **body)["choices"]
    output = "a" if role == "prefill" else "ab"
    assert "".join(choice["text"] for choice in choices) == "x\u00e9" + output
    assert [token for c in choices for token in c["logprobs"]["tokens"]] == tokens
    assert [offset for c in choices for offset in c["logprobs"]["text_offset"]] == offsets


def test_completion_scores_a_prompt() -> None:
    answer = post(FakeEngine(), COMPLETIONS, prompt="xy", echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == "xy"
    assert choice["logprobs"]["tokens"] == ["x", "y"]
    assert answer["usage"]["completion_tokens"] == 0


def test_completion_stream() -> None:
    chunks = stream(
        says("abc"),
        COMPLETIONS,
        prompt="xy",
        echo=True,
        logprobs=0,
        stream_options={"include_usage": True},
    )
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == "xyabc"
    offsets = [o for c in chunks[:-1] for o in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3, 4, 5]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["total_tokens"] == 6


def test_stop_strings_and_special_tokens() -> None:
    answer = post(says("one two"), COMPLETIONS, prompt="x", stop=[" "], max_tokens=50)
    assert answer["choices"][0]["text"] == "one"
    assert answer["choices"][0]["matched_stop"] == " "
    answer = post(
        says("ab"), CHAT, messages=HI, no_stop_trim=True, skip_special_tokens=False, max_tokens=9
    )
    assert answer["choices"][0]["message"]["content"] == "ab</s>"


def test_a_character_left_open_at_the_end_is_shown_as_replaced() -> None:
    engine = FakeEngine(tokens=["é".encode()[0]])
    answer = post(engine, CHAT, messages=HI, max_tokens=1)
    assert answer["choices"][0]["message"]["content"] == "\ufffd"


def test_model_names() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            for model in ("fake-model", "default", "unknown", "", None):
                body = {"model": model, "messages": HI, "max_tokens": 1}
                assert (await worker.post(CHAT, body))[0] == 200
            status, answer = await worker.get("/v1/models")
            assert status == 200
            assert answer["object"] == "list"
            (entry,) = answer["data"]
            assert (entry["id"], entry["max_model_len"]) == ("fake-model", 4096)
            assert await worker.get("/v1/models/fake-model") == (200, entry)
            status, answer = await worker.get("/v1/models/other")
            assert (status, answer["error"]["code"]) == (404, "model_not_found")

    asyncio.run(scenario())


def test_ids_follow_the_request_id() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            body = {"prompt": "a", "max_tokens": 1}
            _, answer = await worker.post(COMPLETIONS, body, {"X-Request-ID": "my-id"})
            assert answer["id"] == "cmpl-my-id"
            assert worker.engine.requests[-1].request_id.startswith("my-id.")
            _, answer = await worker.post(COMPLETIONS, body, {"X-Request-ID": "not sane" * 99})
            assert "not sane" not in answer["id"]

    asyncio.run(scenario())


def test_repeated_header_ids_do_not_collide() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            headers = {"X-Request-ID": "same"}
            asked = [
                asyncio.create_task(worker.post(COMPLETIONS, {"prompt": "a"}, headers))
                for _ in range(2)
            ]
            await engine.until_running(2)
            assert len(set(engine.running_ids)) == 2
            engine.resume()
            assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]

    asyncio.run(scenario())
