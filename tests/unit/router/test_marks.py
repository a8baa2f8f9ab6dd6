"""What a client gets of a marked stream, and what another worker is told of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.marks import MarkedStream, Resume
from baton.router.stalls import NUM_LOOKS, StallWatch

FRAMES = [
    b'data: {"a": 1}\n\n',
    b": t 1\n\n",
    b'data: {"b": ": t 9"}\n\n',
    b'data: {"c": 3}\n\n',
    b": t 2 33\n\n",
    b'data: {"d": 4}\n\n',
]


def stream() -> MarkedStream:
    return MarkedStream("7 1700000000 an id")


@given(st.sets(st.integers(1, len(FRAMES) - 1)))
def test_however_it_is_cut_into_runs_of_frames(cuts: set[int]) -> None:
    marked, passed = stream(), b""
    bounds = [0, *sorted(cuts), len(FRAMES)]
    for start, end in itertools.pairwise(bounds):
        passed += marked.feed(b"".join(FRAMES[start:end]))
    assert passed == FRAMES[0] + FRAMES[2] + FRAMES[3]
    assert marked.resume == Resume([1, 2, 33], 7, 1700000000, "an id")
    assert marked.take_held() == FRAMES[5]
    assert marked.take_held() == b""


def test_what_is_not_marked_is_made_again() -> None:
    marked = stream()
    assert marked.feed(FRAMES[0]) == b""
    marked.drop_held()
    assert marked.num_tokens == 0
    assert marked.feed(FRAMES[0] + FRAMES[1]) == FRAMES[0]
    assert marked.num_tokens == 1


def test_a_mark_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="x"):
        stream().feed(FRAMES[0] + b": t 1 x\n\n")


def test_what_came_with_a_mark_that_makes_no_sense_does_not_count() -> None:
    """Nobody got to see it, so another worker has to make it again."""
    stream = MarkedStream("7 1 id")
    assert stream.feed(b"data: a\n\n: t 5\n\n") == b"data: a\n\n"
    with pytest.raises(ValueError, match="x"):
        stream.feed(b"data: b\n\n: t 6\n\ndata: c\n\n: t x\n\n")
    assert stream.num_tokens == 1


@pytest.mark.parametrize("header", ["", "7", "a 1 id", "7 b id"])
def test_a_header_that_makes_no_sense(header: str) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        MarkedStream(header)


class Stream:
    def __init__(self) -> None:
        self.num_events_seen: int | None = 0


def test_a_silent_stream_is_noticed_and_one_that_moves_is_not() -> None:
    watch, silent, moving = StallWatch[Stream](), Stream(), Stream()
    for turn in range(NUM_LOOKS):
        moving.num_events_seen = turn
        assert watch.look([silent, moving]) == []
    moving.num_events_seen = 99
    assert watch.look([silent, moving]) == [silent]
    silent.num_events_seen = 1
    assert watch.look([silent, moving]) == []


def test_the_time_in_which_silence_says_nothing_does_not_count() -> None:
    watch, stream = StallWatch[Stream](), Stream()
    for _ in range(NUM_LOOKS):
        assert watch.look([stream]) == []
    stream.num_events_seen = None
    assert watch.look([stream]) == []
    stream.num_events_seen = 0
    for _ in range(NUM_LOOKS):
        assert watch.look([stream]) == []
    assert watch.look([stream]) == [stream]
