"""What is read from a client's body and what is added: as SGLang's router does, or better."""

import itertools
import json
from typing import Any

import pytest

from baton.core.errors import RequestError
from baton.router.requests import MAX_CHOICES, parse_generation

BOOTSTRAP = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


def for_pair(route: str, body: bytes, port: int | None = 8998) -> Any:
    rooms = itertools.count(100)
    generation = parse_generation(route, body)
    return json.loads(generation.body_for_pair("127.0.0.1", port, lambda: next(rooms)))


def test_every_item_gets_its_own_room() -> None:
    body = for_pair("/generate", b'{"input_ids": [[1], [2], [3]]}', None)
    assert body["bootstrap_room"] == [100, 101, 102]
    assert body["bootstrap_port"] == [None, None, None]


@pytest.mark.parametrize(
    ("route", "body", "num_items"),
    [
        ("/generate", {"text": "a"}, None),
        ("/generate", {"text": ["a", "b"]}, 2),
        ("/generate", {"text": ["a"]}, 1),
        ("/generate", {"text": None, "input_ids": [[1], [2]]}, 2),
        ("/generate", {"input_ids": [1, 2, 3]}, None),
        ("/generate", {"input_ids": []}, None),
        ("/generate", {"input_ids": [[]]}, None),
        ("/generate", {"input_embeds": [[0.5, 0.5], [1, 1]]}, None),
        ("/generate", {"input_embeds": [[[0.5]], [[1.5]]]}, 2),
        ("/generate", {"sampling_params": {"n": 3}, "text": "a"}, None),
        ("/v1/completions", {"prompt": "a"}, None),
        ("/v1/completions", {"prompt": ["a", "b"]}, 2),
        ("/v1/completions", {"prompt": [1, 2]}, None),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2),
        ("/v1/completions", {"prompt": 7}, None),
        ("/v1/completions", {}, None),
        ("/v1/chat/completions", {"messages": [], "n": 3}, 3),
        ("/v1/chat/completions", {"messages": [], "n": 1}, None),
        ("/v1/chat/completions", {"messages": [], "n": -2}, None),
        ("/v1/chat/completions", {"messages": [], "n": "x"}, None),
    ],
)
def test_number_of_items(route: str, body: Any, num_items: int | None) -> None:
    assert parse_generation(route, json.dumps(body).encode()).num_items == num_items


def test_values_keep_their_bytes_and_keys_their_order() -> None:
    body = (
        '{"z": 123456789012345678901234567890, "a": 1.50, "e": 1e400, "bootstrap_room": 5, '
        '"t": "\\u00e9ü", "o": {"y": [1, 2.0]}}'
    ).encode()
    sent = parse_generation("/generate", body).body_for_pair("h", None, lambda: 7)
    assert (
        sent
        == (
            '{"z":123456789012345678901234567890,"a":1.50,"e":1e400,"bootstrap_room":7,'
            '"t":"\\u00e9ü","o":{"y": [1, 2.0]},"bootstrap_host":"h","bootstrap_port":null}'
        ).encode()
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"null", b'{"a": NaN}', b'{"text": "\xff"}', b'{"a":' + b"[" * 100_000],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_generation("/generate", body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_a_huge_n_is_refused() -> None:
    with pytest.raises(RequestError, match=f"at most {MAX_CHOICES}"):
        parse_generation("/v1/chat/completions", b'{"n": 99999999999999999999999999}')


@pytest.mark.parametrize(
    ("route", "body", "wanted"),
    [
        ("/generate", {"return_logprob": True}, True),
        ("/generate", {"return_logprob": [True, False]}, True),
        ("/generate", {"return_logprob": False}, False),
        ("/generate", {}, False),
        ("/v1/completions", {"echo": True, "logprobs": 0}, True),
        ("/v1/completions", {"echo": True}, False),
        ("/v1/completions", {"logprobs": 2}, False),
        ("/v1/chat/completions", {"logprobs": True}, False),
    ],
)
def test_prompt_logprobs_are_wanted(route: str, body: Any, wanted: bool) -> None:
    assert parse_generation(route, json.dumps(body).encode()).wants_prompt_logprobs is wanted
