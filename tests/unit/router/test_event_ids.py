"""Ids of events: what they say, and whom they are believed from."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.core.errors import RequestError
from baton.router.event_ids import MAX_ID_CHARS, EventIds, Place, RequestIds, derive_key
from baton.router.http.messages import Request
from baton.router.requests import CHAT, GENERATE, parse_generation

KEY = derive_key("a secret of the cluster")
BODY = b'{"stream": true, "text": "x"}'
HEADER = "7 1700000000 engine's id"


def ids_of(
    said: str | None = None,
    route: str = GENERATE,
    body: bytes = BODY,
    key: bytes = KEY,
    authorization: str | None = None,
) -> RequestIds:
    headers = {} if said is None else {"last-event-id": said}
    if authorization is not None:
        headers["authorization"] = authorization
    request = Request(None, "POST", route, headers)  # type: ignore[arg-type]
    request.body = body
    ids = EventIds(key).for_request(request, parse_generation(route, body))
    assert ids is not None
    return ids


def id_of(line: bytes) -> str:
    assert line.startswith(b"id: ")
    assert line.endswith(b"\n")
    return line[4:-1].decode()


def an_id(**more: Any) -> str:
    return id_of(ids_of(**more).told(HEADER, "request")[1].line(12, 0xABC, 0))


@given(
    place=st.tuples(st.integers(0, 10**9 - 1), st.integers(0, 2**32 - 1), st.integers(0, 999)),
    seed=st.integers(0, 2**63 - 1),
    shown_id=st.text(st.characters(max_codepoint=0x2FF), min_size=1, max_size=40),
    is_end=st.booleans(),
)
def test_what_is_written_is_read(
    place: tuple[int, int, int], seed: int, shown_id: str, is_end: bool
) -> None:
    _, ids = ids_of().told(f"{seed} 1700000000 {shown_id}", "request")
    line = ids.end_line(*place) if is_end else ids.line(*place)
    again = ids_of(id_of(line))
    num_tokens, checksum, num = place
    assert again.seen == Place(
        num_tokens=num_tokens,
        checksum=checksum,
        num_behind=0 if is_end else num,
        num_left=num if is_end else None,
    )
    assert again.told("1 2 another worker's", "another request")[0] == (
        f"{seed} 1700000000 {shown_id}"
    )


def test_the_id_that_a_route_shows() -> None:
    generation = parse_generation(GENERATE, BODY[:-1] + b', "rid": "mine"}')
    again = ids_of(an_id())
    assert (again.shown_id, again.shown_request_id) == ("engine's id", None)
    assert json.loads(again.asked_again(generation).body) == {
        **json.loads(BODY),
        "resume": {"token_ids": [], "seed": 7, "created": 1700000000, "id": "engine's id"},
    }
    again = ids_of(an_id(route=CHAT), route=CHAT)
    assert (again.shown_id, again.shown_request_id) == ("request", "request")
    assert ids_of().asked_again(generation) is generation


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY + b" "},
        {"body": b'{"text": "x", "stream": true}'},
        {"route": "/v1/completions"},
        {"authorization": "Bearer another"},
        {"key": derive_key("a secret of another")},
    ],
)
def test_it_is_believed_with_its_own_request_only(other: dict[str, Any]) -> None:
    said = an_id()
    assert ids_of(said).seen is not None
    with pytest.raises(RequestError, match="Last-Event-ID is not of this request") as caught:
        ids_of(said, **other)
    assert (caught.value.status, caught.value.code) == (400, "invalid_event_id")


def test_no_part_can_be_changed() -> None:
    said = an_id()
    for position, character in enumerate(said):
        for other in {"0", "9", "A", "-", "."} - {character}:
            with pytest.raises(RequestError, match="Last-Event-ID is"):
                ids_of(said[:position] + other + said[position + 1 :])


@given(st.text(st.characters(max_codepoint=255), min_size=1, max_size=200))
def test_nonsense_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match="which no router made"):
        ids_of(said)


@pytest.mark.parametrize(
    "said", ["1." + "9" * 9000, "¹.²", an_id() + "A" * MAX_ID_CHARS, an_id()[1:], "\x00"]
)
def test_what_is_too_long_or_odd_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match="which no router made"):
        ids_of(said)


def test_streams_without_ids() -> None:
    body = b'{"text": ["x", "y"], "stream": true}'
    request = Request(None, "POST", GENERATE, {})  # type: ignore[arg-type]
    assert EventIds(KEY).for_request(request, parse_generation(GENERATE, body)) is None
    with pytest.raises(RequestError, match="whose events have no ids"):
        ids_of(an_id(), body=body)


@pytest.mark.parametrize("header", ["", "7", "a 1 id", "7 b id"])
def test_a_worker_that_talks_nonsense(header: str) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        ids_of().told(header, "request")
