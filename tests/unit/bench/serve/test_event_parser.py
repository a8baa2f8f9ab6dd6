"""Events of a stream, cut anywhere, with any line end."""

from hypothesis import given
from hypothesis import strategies as st

from baton.bench.serve.sse import SseParser

EVENTS = {
    b'data: {"a": 1}\n\n': b'{"a": 1}',
    b"data:{}\r\n\r\n": b"{}",
    b": ping\n\ndata: [DONE]\r\r": b"[DONE]",
    b"event: x\nid: 7\ndata: one\ndata: two\n\n": b"one\ntwo",
    b"data:  kept space\n\n": b" kept space",
}


@given(
    st.lists(st.sampled_from(sorted(EVENTS)), max_size=6),
    st.lists(st.integers(1, 9), max_size=80),
)
def test_cuts_change_nothing(events: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(events) + b": end\n"  # a CR alone is whole once something follows it
    parser, found, position = SseParser(), list[bytes](), 0
    for size in [*sizes, len(stream)]:
        found += parser.feed(stream[position : position + size])
        position += size
    assert found == [EVENTS[each] for each in events]


def test_an_event_without_its_end_is_none() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"a": 1}\n') == []
    assert parser.feed(b"\n") == [b'{"a": 1}']
