"""Leaving out what a client has, whatever steps the stream is made of the second time."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.event_ids import EventIds, Place, RequestIds, derive_key
from baton.router.http.messages import Request
from baton.router.numbered_stream import Diverged, NumberedStream, Regrouped
from baton.router.requests import GENERATE, parse_generation

HEADER = "7 1700000000 an id"
NUM_TOKENS = 12
ENDS = [b"data: finish\n\n", b"data: usage\n\n", b"data: [DONE]\n\n"]


def request_ids(last_id: str | None = None) -> RequestIds:
    headers = {} if last_id is None else {"last-event-id": last_id}
    request = Request(None, "POST", GENERATE, headers)  # type: ignore[arg-type]
    request.body = b'{"stream": true}'
    generation = parse_generation(GENERATE, request.body)
    ids = EventIds(derive_key("any secret")).for_request(request, generation)
    assert ids is not None
    return ids


def numbered(seen: Place | None = None) -> NumberedStream:
    header, ids = request_ids().told(HEADER, "a request")
    return NumberedStream(header, ids, seen)


def steps_of(sizes: list[int], start: int = 0, first_token: int = 100) -> Iterator[bytes]:
    """A chat of tokens from `start` on: a first event, steps of these sizes, three last events."""
    for size in sizes:
        end = min(start + size, NUM_TOKENS)
        tokens = b" ".join(b"%d" % (first_token + i) for i in range(start, end))
        step = b"data: role\n\n" if start == 0 else b""
        step += b"data: " + tokens + b"\n\n"
        if end == NUM_TOKENS:
            yield step + b"".join(ENDS)
            return
        yield step + b": t " + tokens + b"\n\n"
        start = end


def passed(stream: NumberedStream, steps: Iterator[bytes]) -> list[bytes]:
    events = b"".join(stream.feed(step) for step in steps) + stream.take_held()
    return [frame + b"\n\n" for frame in events.split(b"\n\n")[:-1]]


def words(frames: list[bytes]) -> list[bytes]:
    """What the frames say, however tokens share them."""
    return b" ".join(frame.partition(b"data: ")[2] for frame in frames).split()


def place_behind(frame: bytes) -> Place:
    seen = request_ids(frame.partition(b"\n")[0][4:].decode()).seen
    assert seen is not None
    return seen


SIZES = st.lists(st.integers(1, 5), min_size=NUM_TOKENS, max_size=NUM_TOKENS)


@given(st.data(), SIZES, SIZES, SIZES)
def test_the_rest_of_any_stream_by_any_steps(
    data: st.DataObject, sizes: list[int], other: list[int], third: list[int]
) -> None:
    frames = passed(numbered(), steps_of(sizes))
    place = data.draw(st.integers(1, len(frames) - 1))
    seen = place_behind(frames[place - 1])
    stream = numbered(seen)
    try:
        rest = passed(stream, steps_of(other))
    except Regrouped:
        assert stream.resume.token_ids == [100 + i for i in range(seen.num_tokens)]
        stream.drop_held()
        rest = passed(stream, steps_of(third, start=seen.num_tokens))
    except Diverged:
        marked = b"".join(steps_of(other)).split(b": t ")[1:]
        assert sum(len(each.split(b"\n")[0].split()) for each in marked) < seen.num_tokens
        assert stream.resume.token_ids == []
        return
    assert words(rest) == words(frames[place:])
    assert len({frame.partition(b"\n")[0] for frame in rest}) == len(rest)


@given(st.data(), SIZES)
def test_by_the_same_steps_it_is_the_same_to_the_byte(
    data: st.DataObject, sizes: list[int]
) -> None:
    frames = passed(numbered(), steps_of(sizes))
    place = data.draw(st.integers(1, len(frames) - 1))
    assert passed(numbered(place_behind(frames[place - 1])), steps_of(sizes)) == frames[place:]


@pytest.mark.parametrize("place", range(3, 3 + NUM_TOKENS))
def test_other_tokens_are_noticed_before_anything_is_passed_on(place: int) -> None:
    frames = passed(numbered(), steps_of([1] * NUM_TOKENS))
    stream = numbered(place_behind(frames[place - 1]))
    with pytest.raises(Diverged, match="other weights"):
        passed(stream, steps_of([1] * NUM_TOKENS, first_token=200))
    assert stream.resume.token_ids == []
    assert passed(stream, steps_of([1] * NUM_TOKENS)) == frames[place:]


@pytest.mark.parametrize("place", [None, 1, 6])
def test_an_error_has_no_id_and_comes_alone(place: int | None) -> None:
    """What its step said before it has no mark: the client gets that when it comes back."""
    frames = passed(numbered(), steps_of([1] * NUM_TOKENS))
    stream = numbered(None if place is None else place_behind(frames[place - 1]))
    error = b"data: error\n\n"
    first, second, *_ = steps_of([1] * NUM_TOKENS)
    begun = stream.feed(first + second.partition(b": t ")[0] + error + ENDS[-1])
    assert begun == b"".join(frames[place or 0 : 2])
    assert stream.take_held(is_sound=False) == error + ENDS[-1]
