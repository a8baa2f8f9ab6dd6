"""Requests and responses as small objects, and the bytes of a response.

Header names are lower case in requests. A header that came several times has its values joined
by commas, as RFC 9110, 5.3 allows.
Elsewhere: parsing (connection.py, upstream.py), answers in pieces (stream.py).
"""

import http
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from baton.router.http.connection import ServerConnection
from baton.router.http.stream import ResponseStream

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
_NO_BODY: Final = frozenset((204, 304))


class Request:
    """`target` is as it came (path and query), `path` without the query and as it came, too.
    `parameters` are those of the route's pattern. `caller` is the application's
    to set."""

    __slots__ = ("body", "caller", "connection", "headers", "is_http_10", "keep_alive", "method",
                 "parameters", "path", "target")  # fmt: skip

    def __init__(
        self, connection: "ServerConnection", method: str, target: str, headers: dict[str, str]
    ):
        self.connection = connection
        self.method = method
        self.target = target
        self.path = target.partition("?")[0]
        self.headers = headers
        self.body = b""
        self.caller: Any = None
        self.keep_alive = True
        self.is_http_10 = False
        self.parameters: Mapping[str, str] = {}

    def begin_stream(self, status: int, headers: Mapping[str, str]) -> "ResponseStream":
        """Answer piece by piece: what the handler returns afterwards is this stream's end."""
        return self.connection.begin_stream(self, status, headers)


class Response:
    """A whole answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None):
        self.status = status
        self.body = body
        self.headers = headers or {}


class _Clock:
    """The Date header, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
            self._line = f"Server: baton\r\nDate: {text}\r\n".encode()
            self._second = now
        return self._line


_clock = _Clock()


def response_head(status: int, headers: Mapping[str, str], framing: bytes) -> bytes:
    """Status line and headers up to the empty line; `framing` are whole header lines."""
    line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return b"".join((line, lines.encode("latin-1"), _clock.line(), framing, b"\r\n"))


def response_bytes(
    response: Response, *, is_head: bool, keep_alive: bool, is_http_10: bool
) -> bytes:
    """All of a whole answer as it goes over the wire."""
    framing = b"" if response.status in _NO_BODY else b"Content-Length: %d\r\n" % len(response.body)
    framing += connection_line(keep_alive, is_http_10)
    head = response_head(response.status, response.headers, framing)
    return head if is_head or response.status in _NO_BODY else head + response.body


def connection_line(keep_alive: bool, is_http_10: bool) -> bytes:
    """Said only where it is not what the version implies."""
    if not keep_alive:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if is_http_10 else b""
