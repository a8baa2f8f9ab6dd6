import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.transfer.protocol import Copy, find_bad_copy, merge_adjacent
from baton.transfer.tcp_frames import (
    FROM_OWNER,
    FROM_WRITER,
    HEADER,
    MAX_PAYLOAD_BYTES,
    MAX_RANGES,
    MAX_TEXT_BYTES,
    RANGE,
    FrameError,
    Kind,
    pack_frame,
    pack_greeting,
    pack_write,
    parse_greeting,
    parse_header,
    parse_ranges,
    parse_text,
    parse_welcome,
    split_frames,
)

COPIES = st.lists(
    st.builds(
        Copy,
        src_offset=st.integers(0, 1 << 40),
        dst_offset=st.integers(0, 1 << 40),
        num_bytes=st.integers(1, 3 << 20),
    ),
    max_size=40,
)


@given(COPIES)
def test_split_frames_fit_and_keep_every_byte(copies: list[Copy]) -> None:
    groups = list(split_frames(copies))
    for group in groups:
        assert 0 < len(group) <= MAX_RANGES
        assert sum(copy.num_bytes for copy in group) <= MAX_PAYLOAD_BYTES
    pieces = [copy for group in groups for copy in group]
    assert merge_adjacent(pieces) == merge_adjacent(copies)


def test_many_tiny_copies_are_split_by_number() -> None:
    copies = [Copy(10 * index, 10 * index, 1) for index in range(3 * MAX_RANGES + 1)]
    assert [len(group) for group in split_frames(copies)] == [MAX_RANGES] * 3 + [1]


@given(COPIES)
def test_write_frames_round_trip(copies: list[Copy]) -> None:
    for group in split_frames(copies):
        packed = pack_write(7, group)
        header = parse_header(packed[: HEADER.size], FROM_WRITER)
        table = packed[HEADER.size :]
        assert (header.kind, header.ticket_id) == (Kind.WRITE, 7)
        assert header.num_table_bytes == len(table)
        ranges = parse_ranges(table, header.num_bytes)
        assert ranges == [(copy.dst_offset, copy.dst_offset + copy.num_bytes) for copy in group]


def test_text_frames_round_trip_and_long_reasons_are_cut() -> None:
    packed = pack_frame(Kind.REFUSED, 3, "zu spät: " + "ä" * 1000)
    header = parse_header(packed[: HEADER.size], FROM_OWNER)
    assert header.num_table_bytes == len(packed) - HEADER.size == MAX_TEXT_BYTES
    assert parse_text(packed[HEADER.size :]).startswith("zu spät: ä")


def test_greetings_round_trip() -> None:
    greeting = parse_greeting(pack_greeting(b"t" * 16, b"w" * 16, 99))
    assert (greeting.token, greeting.writer_id, greeting.region_bytes) == (b"t" * 16, b"w" * 16, 99)


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(b"HTTP", 1, Kind.BEGIN, 0, 0, 0),
        HEADER.pack(b"BTKV", 9, Kind.BEGIN, 0, 0, 0),
        HEADER.pack(b"BTKV", 1, 77, 0, 0, 0),
        HEADER.pack(b"BTKV", 1, Kind.DONE, 0, 0, 0),
        HEADER.pack(b"BTKV", 1, Kind.WRITE, MAX_RANGES + 1, 0, 1),
        HEADER.pack(b"BTKV", 1, Kind.WRITE, 1, 0, MAX_PAYLOAD_BYTES + 1),
        HEADER.pack(b"BTKV", 1, Kind.BEGIN, MAX_TEXT_BYTES + 1, 0, 0),
        HEADER.pack(b"BTKV", 1, Kind.END, 0, 0, 1),
    ],
)
def test_bad_headers_are_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        parse_header(frame, FROM_WRITER)


def test_bad_tables_and_greetings_are_refused() -> None:
    with pytest.raises(FrameError, match="ranges of 12 bytes"):
        parse_ranges(RANGE.pack(0, 12), 11)
    with pytest.raises(FrameError):
        parse_ranges(RANGE.pack(0, 12) + RANGE.pack(5, 0), 12)
    with pytest.raises(FrameError):
        parse_greeting(b"x" * 50)
    with pytest.raises(FrameError):
        parse_welcome(b"BATNTCP1\x00\x01\x00\x63")
    with pytest.raises(FrameError):
        parse_welcome(b"HTTP/1.1 404")


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_header_is_bounded_or_refused(frame: bytes) -> None:
    try:
        header = parse_header(frame, FROM_WRITER)
    except FrameError:
        return
    assert header.num_table_bytes <= max(MAX_RANGES * RANGE.size, MAX_TEXT_BYTES)
    assert header.num_bytes <= MAX_PAYLOAD_BYTES


def test_find_bad_copy_names_the_range() -> None:
    assert find_bad_copy([Copy(0, 0, 10), Copy(90, 190, 10)], 100, 200) == ""
    assert "[95, 105)" in find_bad_copy([Copy(95, 0, 10)], 100, 200)
    assert "[195, 205)" in find_bad_copy([Copy(0, 195, 10)], 100, 200)
    assert "-1" in find_bad_copy([Copy(0, 0, -1)], 100, 200)
