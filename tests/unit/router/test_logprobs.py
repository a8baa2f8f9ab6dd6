"""Prefill's prompt logprobs in decode's answers, whole and streamed, single and batched."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from baton.router import sse
from baton.router.logprobs import CompletionLogprobs, GenerateLogprobs
from baton.testing.fake_worker import stream_event, whole_answer

PROMPT = [[None, 1, None], [-0.5, 2, None]]
GENERATE = {"return_logprob": True}
COMPLETION = {"echo": True, "logprobs": 1}


def whole(path: str, body: Any, role: str, num_tokens: int) -> bytes:
    return json.dumps(whole_answer(path, body, role, num_tokens)).encode()


def stream(path: str, body: Any, role: str, num_tokens: int) -> bytes:
    events = [stream_event(path, body, role, i, num_tokens) for i in range(1, num_tokens + 1)]
    return b"".join(sse.event(json.dumps(e).encode()) for e in events) + sse.DONE_EVENT


def parsed(events: bytes) -> list[Any]:
    return [json.loads(payload) for payload in sse.payloads(events)]


def test_the_captured_merge(captured: Callable[[str], Any]) -> None:
    theirs = json.loads(captured("07_generate_logprob")["router_response"]["body"])
    decodes = json.loads(json.dumps(theirs))
    decodes["meta_info"]["input_token_logprobs"] = []
    merge = GenerateLogprobs(whole("/generate", GENERATE, "prefill", 1), is_stream=False)
    assert json.loads(merge.into_body(json.dumps(decodes).encode())) == theirs


def test_whole_answer_changes_only_where_it_must() -> None:
    body = (
        b'{"text":"x","meta_info":{"id":1e2,"input_token_logprobs":[[-0.25,3,null]],'
        b'"e2e_latency":0.10}}'
    )
    merge = GenerateLogprobs(whole("/generate", GENERATE, "prefill", 1), is_stream=False)
    assert merge.into_body(body) == (
        b'{"text":"x","meta_info":{"id":1e2,"input_token_logprobs":[[null, 1, null],'
        b'[-0.5, 2, null],[-0.25,3,null]],"e2e_latency":0.10}}'
    )


def test_batch_is_merged_by_position_and_n_by_prompt() -> None:
    prefill = json.dumps(
        [{"meta_info": {"input_token_logprobs": [[None, i, None]]}} for i in range(2)]
    ).encode()
    merge = GenerateLogprobs(prefill, is_stream=False)
    one_each = [{"meta_info": {"input_token_logprobs": []}} for _ in range(2)]
    two_each = [{"meta_info": {"input_token_logprobs": []}} for _ in range(4)]
    for answers, expected in ((one_each, [0, 1]), (two_each, [0, 0, 1, 1])):
        merged = json.loads(merge.into_body(json.dumps(answers).encode()))
        assert [m["meta_info"]["input_token_logprobs"][0][1] for m in merged] == expected


def test_top_logprobs_come_along() -> None:
    meta = {"input_token_logprobs": PROMPT, "input_top_logprobs": [None, [[-0.5, 2, None]]]}
    merge = GenerateLogprobs(json.dumps({"meta_info": meta}).encode(), is_stream=False)
    assert json.loads(merge.into_body(b'{"meta_info": {"id": "a"}}'))["meta_info"] == {
        "id": "a",
        **meta,
    }


def test_every_event_of_a_generate_stream_has_them() -> None:
    merge = GenerateLogprobs(stream("/generate", GENERATE, "prefill", 1), is_stream=True)
    merged = merge.into_events(stream("/generate", GENERATE, "decode", 3))
    assert merged.endswith(b"\n\n" + sse.DONE_EVENT)
    assert [m["meta_info"]["input_token_logprobs"] for m in parsed(merged)] == [PROMPT] * 3
    assert [len(m["meta_info"]["output_token_logprobs"]) for m in parsed(merged)] == [1, 2, 3]


def test_batched_stream_is_merged_by_index() -> None:
    prefill = b"".join(
        sse.event(
            json.dumps(
                {"index": i, "meta_info": {"input_token_logprobs": [[None, i, None]]}}
            ).encode()
        )
        for i in (1, 0)
    )
    merge = GenerateLogprobs(prefill, is_stream=True)
    event = sse.event(b'{"index": 1, "meta_info": {"input_token_logprobs": []}}')
    assert parsed(merge.into_events(event))[0]["meta_info"]["input_token_logprobs"][0][1] == 1


def test_error_events_pass_unchanged() -> None:
    merge = GenerateLogprobs(whole("/generate", GENERATE, "prefill", 1), is_stream=False)
    event = b'data: {"error": {"message":  "no"}}\n\n'
    assert parsed(merge.into_events(event)) == parsed(event)


def test_echoed_completion_gets_the_prompts_but_not_prefills_own_token() -> None:
    path = "/v1/completions"
    prefill = whole(path, COMPLETION, "prefill", 1)
    merge = CompletionLogprobs(prefill, is_stream=False, num_prefill_tokens=1)
    merged = json.loads(merge.into_body(whole(path, COMPLETION, "decode", 3)))
    unified = whole_answer(path, COMPLETION, "regular", 3)
    ours, theirs = merged["choices"][0]["logprobs"], unified["choices"][0]["logprobs"]
    assert ours["tokens"] == theirs["tokens"] == ["h", "i", "x", "x", "x"]
    assert ours["token_logprobs"] == theirs["token_logprobs"]


def test_echoed_completion_stream_gets_the_prompts_once() -> None:
    path = "/v1/completions"
    prefill = stream(path, COMPLETION, "prefill", 1)
    merge = CompletionLogprobs(prefill, is_stream=True, num_prefill_tokens=1)
    merged = parsed(merge.into_events(stream(path, COMPLETION, "decode", 2)))
    assert [m["choices"][0]["logprobs"]["tokens"] for m in merged] == [["h", "i", "x"], ["x"]]


def test_what_is_not_json_is_not_hidden() -> None:
    merge = GenerateLogprobs(b'{"meta_info": {"input_token_logprobs": []}}', is_stream=False)
    with pytest.raises(msgspec.DecodeError):
        merge.into_body(b"<html>")
    with pytest.raises(msgspec.DecodeError):
        GenerateLogprobs(b"<html>", is_stream=False)
