"""Cutting streams into whole events, however the bytes arrive."""

from hypothesis import given
from hypothesis import strategies as st

from baton.router import sse

EVENTS = [b'data: {"text": "a"}\n\n', b"data: {}\r\n\r\n", b": ping\n\n", sse.DONE_EVENT]


@given(st.lists(st.sampled_from(EVENTS), max_size=8), st.binary(max_size=6), st.data())
def test_nothing_is_lost_or_reordered_and_cuts_are_clean(
    events: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    stream = b"".join(events) + rest.replace(b"\n", b"")
    cutter, out, position = sse.EventCutter(), [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, 12))
        out.append(cutter.feed(stream[position : position + size]))
        position += size
    whole = b"".join(out)
    assert stream.startswith(whole)
    assert whole == b"".join(events)
    assert all(not piece or piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in out)
    assert cutter.is_done == (bool(events) and events[-1] == sse.DONE_EVENT)


def test_done_inside_a_text_is_not_the_end() -> None:
    cutter = sse.EventCutter()
    cutter.feed(b'data: {"text": "data: [DONE]"}\n\n')
    assert not cutter.is_done


def test_payloads_leave_out_done_and_comments() -> None:
    assert list(sse.payloads(b': x\n\ndata: {"a": 1}\n\ndata:{}\n\ndata: [DONE]\n\n')) == [
        b'{"a": 1}',
        b"{}",
    ]
