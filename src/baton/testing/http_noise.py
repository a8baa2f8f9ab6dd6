"""What arrives at an HTTP port in the wild: requests, cut, mutated, merged, and garbage. Pure.

A case follows from its number alone, so a failing one is named by it.
Elsewhere: sending it and what must hold then (tests/unit/router/test_fuzz_http.py).
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Ending(Enum):
    """What the client does after its last byte."""

    WAIT = auto()
    HALF_CLOSE = auto()
    RESET = auto()


@dataclass(frozen=True)
class Case:
    """`pieces` are sent one by one. `statuses`: what must be answered if nothing was mutated."""

    pieces: tuple[bytes, ...]
    ending: Ending
    statuses: tuple[int, ...] | None


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (*chunks, b""))


_GENERATE: Final = b'{"text": "hello", "sampling_params": {"max_new_tokens": 8}}'
_STREAM: Final = b'{"input_ids": [1, 2, 3], "stream": true}'
_CHAT: Final = b'{"messages": [{"role": "user", "content": "h\xc3\xa9"}], "n": 2}'

REQUESTS: Final[Sequence[tuple[bytes, int]]] = (
    (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-ID: r-1\r\n\r\n", 200),
    (b"GET /nowhere?q=%20 HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    (b"DELETE /generate HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    (b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    (post("/generate", _GENERATE), 200),
    (post("/generate", _STREAM), 200),
    (post("/generate", b'{"text": '), 400),
    (post("/generate", b"[1]", "Content-Type: application/json"), 400),
    (post("/v1/chat/completions", _CHAT, "Authorization: Bearer k"), 200),
    (post("/v1/completions", b'{"prompt": ["a", "b"]}'), 200),
    (post("/abort_request", b'{"rid": 5}'), 400),
    (chunked("/generate", _GENERATE[:9], _GENERATE[9:]), 200),
)
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ODD_NUMBERS: Final = (b"-1", b"0", b"007", b"99999999999999999999", b"1e3", b"0x10", b"\xff")
_ODD_LINES: Final = (
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Connection: close\r\n",
    b"X: " + b"x" * 20_000 + b"\r\n",
    b" folded\r\n",
    b"No colon\r\n",
    b"X-Request-ID: \xff\xfe\r\n",
    b": empty\r\n",
)


def case(number: int) -> Case:
    """The `number`-th case: a third of them are valid, only cut and pipelined."""
    draw = random.Random(number)
    chosen = draw.choices(REQUESTS, k=draw.choice((1, 1, 2, 5, 20)))
    data = b"".join(request for request, _ in chosen)
    if draw.random() < 1 / 3:
        statuses = tuple(status for _, status in chosen)
        return Case(_cut(data, draw), Ending.WAIT, statuses)
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(_MUTATIONS)(data, draw)
    return Case(_cut(data, draw), draw.choice(tuple(Ending)), None)


def _cut(data: bytes, draw: random.Random) -> tuple[bytes, ...]:
    if len(data) < 100 and draw.random() < 0.2:
        return tuple(data[at : at + 1] for at in range(len(data)))
    places = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(4)))
    bounds = [0, *places, len(data)]
    return tuple(data[a:b] for a, b in itertools.pairwise(bounds) if a < b)


def _slice(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 2, 8, 50)))


def _flip(data: bytes, draw: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(draw.choice((1, 3, 20))):
        if flipped:
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _delete(data: bytes, draw: random.Random) -> bytes:
    start, end = _slice(data, draw)
    return data[:start] + data[end:]


def _double(data: bytes, draw: random.Random) -> bytes:
    start, end = _slice(data, draw)
    return data[:end] + data[start:]


def _insert(data: bytes, draw: random.Random) -> bytes:
    start, _ = _slice(data, draw)
    noise = draw.choice((b"\0", b"\r", b"\n", b"\r\n\r\n", b"0\r\n\r\n", _PREFACE))
    return data[:start] + draw.choice((noise, draw.randbytes(30))) + data[start:]


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _garbage(data: bytes, draw: random.Random) -> bytes:
    return draw.choice((_PREFACE + data, draw.randbytes(draw.choice((1, 100, 5000)))))


def _bare_line_ends(data: bytes, draw: random.Random) -> bytes:
    return data.replace(b"\r\n", b"\n", draw.choice((1, 3, -1)))


def _odd_number(data: bytes, draw: random.Random) -> bytes:
    head, found, rest = data.partition(b"Content-Length: ")
    if not found:
        return _flip(data, draw)
    return head + found + draw.choice(_ODD_NUMBERS) + rest[rest.find(b"\r\n") :]


def _odd_line(data: bytes, draw: random.Random) -> bytes:
    return data.replace(b"\r\nHost: a\r\n", b"\r\nHost: a\r\n" + draw.choice(_ODD_LINES), 1)


def _long_target(data: bytes, draw: random.Random) -> bytes:
    return data.replace(b" /", b" /" + b"a" * draw.choice((10, 20_000)), 1)


def _big_body(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice(
        (post("/generate", b" " * 100_000), chunked("/generate", *[b" " * 9000] * 9))
    )


_MUTATIONS: Final[Sequence[Callable[[bytes, random.Random], bytes]]] = (
    _flip,
    _delete,
    _double,
    _insert,
    _truncate,
    _garbage,
    _bare_line_ends,
    _odd_number,
    _odd_line,
    _long_target,
    _big_body,
)
