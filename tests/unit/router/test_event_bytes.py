"""What the router looks for in bytes, beside regular expressions of the same meaning."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router._event_bytes import cut_marks, mentions_error

NEEDLES = [b'"error"', b'"abort"']
MENTION = re.compile(rb'"(?:error|abort)"')
ALIKE = [b'"', b"error", b"abort", b"o", b'"xxxox"', b'"error', b'abort"', b'"errort"', b'"eerror"']
"""Pieces of which needles come about, and what is nearly one."""


def is_mentioned(events: bytes) -> bool:
    return MENTION.search(events) is not None


@pytest.mark.parametrize("needle", NEEDLES)
@pytest.mark.parametrize("fill", [b'"', b"o", b" ", b"\0", b"\xff"])
def test_a_needle_is_found_wherever_it_is(needle: bytes, fill: bytes) -> None:
    """Longer than two blocks of the search, so that it also lies across their edges."""
    for num_bytes in [*range(7, 80), 262, 263, 600]:
        for start in range(num_bytes - len(needle) + 1):
            events = fill * start + needle + fill * (num_bytes - start - len(needle))
            assert mentions_error(events), (num_bytes, start)


@pytest.mark.parametrize("needle", NEEDLES)
def test_part_of_a_needle_is_none(needle: bytes) -> None:
    for num_around in [*range(200), 255, 256, 257, 600]:
        around = b" " * num_around
        for cut in range(len(needle)):
            assert not mentions_error(around + needle[:cut]), (num_around, cut)
            assert not mentions_error(needle[cut + 1 :] + around), (num_around, cut)
            odd = needle[:cut] + b"\x80" + needle[cut + 1 :]
            assert not mentions_error(around + odd + around), (num_around, cut)


def test_what_is_behind_the_end_does_not_count() -> None:
    assert not mentions_error(b'"error"'[:-1])
    assert not mentions_error(b"")
    assert not mentions_error(rb'{"\u0065rror":1}')


@given(st.lists(st.sampled_from([*ALIKE, b" " * 250]) | st.binary(max_size=9), max_size=30))
def test_as_the_regular_expression_says(pieces: list[bytes]) -> None:
    events = b"".join(pieces)
    assert mentions_error(events) == is_mentioned(events)


@pytest.mark.parametrize("seed", range(4))
def test_as_the_regular_expression_says_of_random_bytes(seed: int) -> None:
    """Of the needles' own letters too; some have one."""
    rng = random.Random(seed)
    num_found = 0
    for _ in range(1_000):
        letters = rng.choice([b'"erabot', b'"o', bytes(range(256))])
        events = bytearray(rng.choices(letters, k=rng.randrange(700)))
        if events and rng.random() < 0.5:
            at = rng.randrange(len(events))
            events[at : at + 7] = rng.choice([*NEEDLES, *ALIKE])
        assert mentions_error(bytes(events)) == is_mentioned(events), bytes(events)
        num_found += is_mentioned(events)
    assert 50 < num_found < 500


@pytest.mark.parametrize("other", ['"error"', bytearray(b'"error"'), None])
def test_only_bytes_are_searched(other: object) -> None:
    with pytest.raises(TypeError):
        mentions_error(other)  # type: ignore[arg-type]


MARKED = re.compile(rb"\n\n: t (.*?)\n\n", re.DOTALL)
FRAMES = [
    b"data: {}\n\n",
    b": t 1\n\n",
    b": t 15 27\n\n",
    b": t \n\n",
    b": t/1 2\n\n",
    b"\n",
    b": t 9",
]


@given(st.lists(st.sampled_from(FRAMES), max_size=12))
def test_marks_are_cut_as_the_regular_expression_does(frames: list[bytes]) -> None:
    events = b"".join(frames)
    *pieces, rest = MARKED.split(events)
    marked = b"".join([step + b"\n\n" for step in pieces[::2]])
    try:
        token_ids = [int(number) for mark in pieces[1::2] for number in mark.split()]
    except ValueError:
        with pytest.raises(ValueError, match="a mark is not token ids"):
            cut_marks(events)
    else:
        assert cut_marks(events) == (marked, token_ids, rest)


@pytest.mark.parametrize("mark", [b"x", b"1 x", b"1x", b"1,2", b"1  2", b"1.5", b"9" * 30, b"\xff"])
def test_a_mark_of_something_else(mark: bytes) -> None:
    with pytest.raises(ValueError, match="a mark is not token ids") as raised:
        cut_marks(b"data: {}\n\n: t 5\n\ndata: {}\n\n: t " + mark + b"\n\n")
    assert repr(mark) in str(raised.value)
