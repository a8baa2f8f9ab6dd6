"""What each dialect says and understands."""

from typing import Any

import pytest

from baton.bench.serve.backends import History, make_backend, merged
from baton.bench.serve.config import TargetConfig
from baton.core.errors import ConfigError


def body(backend: str, history: History | None = None, **options: Any) -> dict[str, Any]:
    config = TargetConfig(backend=backend, **options)
    return make_backend(config, "m").body(history or History(["Hi"]), 5)


def test_sglangs_own_body() -> None:
    assert body("sglang", History([(1, 2)])) == {
        "input_ids": (1, 2),
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 5, "ignore_eos": True},
        "stream": True,
    }
    assert body("sglang")["text"] == "Hi"


def test_completions() -> None:
    assert body("vllm") == {
        "model": "m",
        "prompt": "Hi",
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert body("llama.cpp")["timings_per_token"] is True


def test_openai_gets_no_field_that_it_does_not_know() -> None:
    assert body("openai-chat") == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("backend", ["vllm", "sglang-oai-chat", "llama.cpp-chat", "sglang"])
def test_switches(backend: str) -> None:
    plain = body(backend, disable_stream=True, disable_ignore_eos=True)
    assert plain["stream"] is False
    assert "ignore_eos" not in str(plain)
    assert "stream_options" not in plain


def test_a_later_turn_has_all_before_it() -> None:
    history = History(["Q1 ", "Q2"], ["A1 "])
    assert body("openai", history)["prompt"] == "Q1 A1 Q2"
    assert body("openai-chat", history)["messages"] == [
        {"role": "user", "content": "Q1 "},
        {"role": "assistant", "content": "A1 "},
        {"role": "user", "content": "Q2"},
    ]
    assert body("sglang", history)["text"] == "Q1 A1 Q2"


def test_extra_fields_are_merged_and_null_takes_away() -> None:
    extra = '{"sampling_params": {"top_p": 0.5, "ignore_eos": null}, "stream": null, "x": [1]}'
    assert body("sglang", extra_request_body=extra) == {
        "text": "Hi",
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 5, "top_p": 0.5},
        "x": [1],
    }
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


@pytest.mark.parametrize("text", ["{", "[1]", "3", ""])
def test_wrong_extra_fields_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--extra-request-body .* is no JSON object"):
        body("vllm", extra_request_body=text)


def test_chat_takes_no_ids() -> None:
    takes = {
        name: make_backend(TargetConfig(backend=name), "m").takes_ids
        for name in ("sglang", "vllm", "vllm-chat", "openai-chat")
    }
    assert takes == {"sglang": True, "vllm": True, "vllm-chat": False, "openai-chat": False}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"choices": None, "usage": None},
        {"choices": [None]},
        {"choices": [{"delta": None, "text": None}], "usage": {"completion_tokens": "7"}},
        {"meta_info": None, "text": None},
    ],
)
@pytest.mark.parametrize("backend", ["sglang", "vllm", "vllm-chat"])
def test_events_with_nothing_in_them_bring_nothing(backend: str, event: dict[str, Any]) -> None:
    part = make_backend(TargetConfig(backend=backend), "m").read(event)
    assert (part.text, part.num_output, part.error, part.finish_reason) == ("", None, None, None)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [(None, "http://127.0.0.1:8000"), ("http://x:1/v1/", "http://x:1"), ("http://x", "http://x")],
)
def test_where_the_server_is(base_url: str | None, url: str) -> None:
    assert TargetConfig(base_url=base_url).url() == url


def test_an_ipv6_host_is_bracketed() -> None:
    assert TargetConfig(host="::1", port=9).url() == "http://[::1]:9"
