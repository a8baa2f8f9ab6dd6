"""What routing reads out of a body: beginnings, sizes, sessions, tenants, and never an error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.kvcache.block_hash import extend_hashes
from baton.router.policies.request import RoutedRequest
from baton.router.prompt_shape import (
    ASSUMED_NEW_TOKENS,
    MAX_ASSUMED_NEW_TOKENS,
    MAX_HASHES,
    PIECE_BYTES,
    Standing,
    hashes_of_bytes,
    shape_of,
    standing_of,
)
from baton.router.requests import CHAT, COMPLETIONS, GENERATE, GENERATION_ROUTES, parse_generation

LONG = "All happy families are alike; each unhappy family is unhappy in its own way. " * 20


def shape(route: str, body: dict[str, Any], **headers: str) -> RoutedRequest:
    return shape_of(parse_generation(route, json.dumps(body).encode()), headers)


def standing(body: dict[str, Any], tenant_header: str | None = None, **headers: str) -> Standing:
    generation = parse_generation(GENERATE, json.dumps(body).encode())
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return standing_of(generation, named, tenant_header)


def num_common(one: RoutedRequest, other: RoutedRequest) -> int:
    pairs = zip(one.prefix_hashes, other.prefix_hashes, strict=False)
    return sum(mine == theirs for mine, theirs in pairs)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (GENERATE, {"input_ids": list(range(100))}),
        (GENERATE, {"input_ids": [list(range(100)), [1, 2]]}),
        (COMPLETIONS, {"prompt": list(range(100))}),
    ],
)
def test_token_ids_are_named_as_workers_name_their_blocks(route: str, body: dict[str, Any]) -> None:
    expected: list[bytes] = []
    extend_hashes(expected, list(range(100)), 16)
    assert shape(route, body).prefix_hashes == tuple(expected)
    salted: list[bytes] = []
    extend_hashes(salted, list(range(100)), 16, "2:abc")
    body = {**body, "cache_salt": "ab", "extra_key": "c"}
    assert shape(route, body).prefix_hashes == tuple(salted)


def test_token_ids_are_counted_and_text_is_estimated() -> None:
    assert shape(GENERATE, {"input_ids": [1, 2, 3]}).num_prompt_tokens == 3
    assert shape(GENERATE, {"input_ids": [[1, 2, 3], [4, 5, 6]]}).num_prompt_tokens == 6
    assert shape(GENERATE, {"text": "x" * 398}).num_prompt_tokens == 100


def test_a_later_turn_begins_with_the_names_of_the_earlier_one() -> None:
    turns = [{"role": "user", "content": LONG}]
    first = shape(CHAT, {"messages": turns})
    assert len(first.prefix_hashes) == len(json.dumps(turns)) // PIECE_BYTES
    turns += [{"role": "assistant", "content": "Why?"}, {"role": "user", "content": LONG}]
    later = shape(CHAT, {"messages": turns, "temperature": 1})
    assert len(later.prefix_hashes) > len(first.prefix_hashes)
    assert num_common(first, later) >= len(first.prefix_hashes) - 1


def test_beginnings_are_named_only_on_demand() -> None:
    for body in ({"text": LONG}, {"input_ids": list(range(64))}):
        generation = parse_generation(GENERATE, json.dumps(body).encode())
        full, bare = shape_of(generation, {}), shape_of(generation, {}, with_prefix=False)
        assert full.prefix_hashes
        assert not bare.prefix_hashes
        assert full.num_prompt_tokens == bare.num_prompt_tokens


def test_tools_stand_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": LONG}}]
    one = shape(CHAT, {"tools": tools, "messages": [{"role": "user", "content": "a"}]})
    other = shape(CHAT, {"messages": [{"role": "user", "content": "b" * 500}], "tools": tools})
    assert num_common(one, other) >= len(json.dumps(tools)) // PIECE_BYTES


@pytest.mark.parametrize("field", ["model", "lora_path", "cache_salt", "extra_key"])
def test_what_workers_keep_apart_has_other_names(field: str) -> None:
    one, other = shape(GENERATE, {"text": LONG, field: "a"}), shape(GENERATE, {"text": LONG})
    assert num_common(one, other) == 0


def test_a_difference_changes_all_names_after_it() -> None:
    one, other = hashes_of_bytes(b"a" * 1024), hashes_of_bytes(b"a" * 300 + b"b" + b"a" * 723)
    assert [mine == theirs for mine, theirs in zip(one, other, strict=True)] == [True] * 2 + [
        False
    ] * 6


def test_a_huge_prompt_has_a_bounded_number_of_names() -> None:
    assert len(shape(GENERATE, {"text": "x" * 10**6}).prefix_hashes) == MAX_HASHES
    assert len(shape(GENERATE, {"input_ids": [7] * 20_000}).prefix_hashes) == MAX_HASHES


@pytest.mark.parametrize(
    ("route", "body", "num"),
    [
        (GENERATE, {"text": "a", "sampling_params": {"max_new_tokens": 9}}, 9),
        (GENERATE, {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 9}}, 18),
        (CHAT, {"messages": [], "max_tokens": 3, "max_completion_tokens": 5}, 5),
        (CHAT, {"messages": [], "max_tokens": 3, "n": 4}, 12),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 0),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 10**9}, MAX_ASSUMED_NEW_TOKENS),
        (COMPLETIONS, {"prompt": "a", "max_tokens": -4}, 0),
        (COMPLETIONS, {"prompt": "a", "max_tokens": "many"}, ASSUMED_NEW_TOKENS),
        (COMPLETIONS, {"prompt": "a"}, ASSUMED_NEW_TOKENS),
    ],
)
def test_new_tokens(route: str, body: dict[str, Any], num: int) -> None:
    assert shape(route, body).num_new_tokens == num


def test_sessions_by_header_then_session_id_then_user() -> None:
    body = {"text": "a", "session_id": "s", "user": "u"}
    assert shape(GENERATE, body, **{"X-SMG-Routing-Key": "h"}).session_key == "h"
    assert shape(GENERATE, body).session_key == "s"
    assert shape(GENERATE, {"text": "a", "user": "u"}).session_key == "u"
    assert shape(GENERATE, {"text": "a", "user": 7}).session_key is None
    assert shape(GENERATE, {"text": "a", "user": ""}).session_key is None


def test_tenants_are_keys_or_what_the_gateway_says() -> None:
    one, other = standing({}, authorization="Bearer a"), standing({}, authorization="Bearer b")
    assert one.tenant != other.tenant
    assert "Bearer" not in one.tenant
    assert standing({}).tenant == ""
    named = {"X_Team": "blue", "authorization": "Bearer a"}
    assert standing({}, "x-team", **named).tenant == "blue"
    assert standing({}, None, **named) == one


@pytest.mark.parametrize(
    ("given_priority", "priority"), [(3, 3), (-3, -3), (None, 0), ("high", 0), (1.5, 0), (True, 0)]
)
def test_priority_is_the_bodys(given_priority: Any, priority: int) -> None:
    assert standing({"priority": given_priority}).priority == priority


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
NAMES = ("text", "input_ids", "prompt", "messages", "tools", "max_tokens", "sampling_params",
         "user", "session_id", "priority", "cache_salt", "extra_key", "model")  # fmt: skip


@given(st.sampled_from(GENERATION_ROUTES), st.dictionaries(st.sampled_from(NAMES), json_values))
def test_odd_bodies_are_left_to_the_workers(route: str, body: dict[str, Any]) -> None:
    try:
        generation = parse_generation(route, json.dumps(body, allow_nan=False).encode())
    except ValueError:
        return  # no JSON
    found = shape_of(generation, {})
    assert found.num_prompt_tokens >= 0
    assert 0 <= found.num_new_tokens <= MAX_ASSUMED_NEW_TOKENS * (generation.num_items or 1)
    assert found.num_uncached(len(found.prefix_hashes)) >= min(1, found.num_prompt_tokens)
    standing_of(generation, {}, None)
