"""Reading responses: every framing that a server may use, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.serve.http_response import BadResponse, ResponseParser

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
LENGTH = b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\nX-A: b: c\r\n\r\nabc"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH


def feed_in_pieces(parser: ResponseParser, stream: bytes, sizes: list[int]) -> bytes:
    body, position = b"", 0
    for size in [*sizes, len(stream)]:
        body += parser.feed(stream[position : position + size])
        position += size
    return body


@pytest.mark.parametrize(
    ("stream", "status", "body"),
    [(CHUNKED, 200, b"hello 0123456789"), (LENGTH, 404, b"abc"), (INTERIM, 404, b"abc")],
)
@given(sizes=st.lists(st.integers(1, 9), max_size=60))
def test_cuts_change_nothing(stream: bytes, status: int, body: bytes, sizes: list[int]) -> None:
    parser = ResponseParser()
    assert feed_in_pieces(parser, stream, sizes) == body
    assert parser.status == status
    assert parser.is_complete
    parser.feed_eof()


@given(st.lists(st.integers(1, 9), max_size=60))
def test_a_body_without_length_ends_with_the_connection(sizes: list[int]) -> None:
    parser = ResponseParser()
    stream = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
    assert feed_in_pieces(parser, stream, sizes) == b"data: 1\n\n"
    assert not parser.is_complete
    parser.feed_eof()
    assert parser.is_complete


@given(st.sampled_from([CHUNKED, LENGTH]), st.data())
def test_an_end_before_the_end_is_an_error(stream: bytes, data: st.DataObject) -> None:
    parser = ResponseParser()
    parser.feed(stream[: data.draw(st.integers(0, len(stream) - 1))])
    with pytest.raises(BadResponse, match="the server closed the connection"):
        parser.feed_eof()


def test_names_of_headers_are_in_lower_case_and_values_whole() -> None:
    parser = ResponseParser()
    parser.feed(LENGTH)
    assert parser.headers == {"content-length": "3", "x-a": "b: c"}


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 %d x\r\n\r\nrest" % status) == b""
    assert parser.is_complete


def test_an_empty_body_is_complete_at_once() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert parser.is_complete


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not the first line"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not the first line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "is not a number"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "size of a chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\n", "size of a chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "no line end"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, "the head of the answer"),
    ],
)
def test_what_is_no_response_is_named(stream: bytes, reason: str) -> None:
    with pytest.raises(BadResponse, match=reason):
        ResponseParser().feed(stream)
