"""Reading one HTTP/1.1 response as its bytes come, without any socket.

Small on purpose: a load generator shares the machine with what it measures, and has to know when a
body's bytes reached the socket. What RFC 9112 allows a server to send is read: lengths, chunks with
extensions and trailers, bodies that end with the connection, interim responses.

Invariant: how the bytes are cut into pieces changes nothing in what comes out.
Elsewhere: the socket (http_client.py), events in a body (sse.py).
"""

from typing import Final

from baton.core.errors import BatonError

_MAX_HEAD_BYTES: Final = 65536
_MAX_CHUNK_LINE_BYTES: Final = 4096


class BadResponse(BatonError, RuntimeError):
    """What came is no HTTP/1.1 response."""


class ResponseParser:
    """`status` and `headers` (names in lower case) are there once the head has been read."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._buffer = bytearray()
        self._left: int | None = None  # bytes of the body or chunk; None: until the end
        self._is_chunked = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """The part of the body that `data` brought. Raises BadResponse. What follows a complete
        response is ignored: its connection is not used again."""
        if self.is_complete:
            return b""
        if self.status is not None and not self._is_chunked and not self._buffer:
            return self._plain(data)
        self._buffer += data
        while self.status is None:
            if not self._read_head():
                return b""
        if self.is_complete:
            return b""
        if self._is_chunked:
            return self._chunks()
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self._plain(rest)

    def feed_eof(self) -> None:
        """The connection has ended. Raises BadResponse when the response has not."""
        if self.is_complete:
            return
        if self.status is None:
            raise BadResponse("the server closed the connection before it answered")
        if self._is_chunked or self._left is not None:
            raise BadResponse("the server closed the connection in the middle of its answer")
        self.is_complete = True

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise BadResponse(f"the head of the answer has over {_MAX_HEAD_BYTES} bytes")
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        status = _status(first)
        if 100 <= status < 200:
            return bool(self._buffer)  # interim: the final one follows
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._choose_framing(status)
        return True

    def _choose_framing(self, status: int) -> None:
        if status in (204, 304):
            self.is_complete = True
        elif self.headers.get("transfer-encoding", "").lower().endswith("chunked"):
            self._is_chunked, self._left = True, 0
        elif (length := self.headers.get("content-length")) is not None:
            if not length.isdecimal():
                raise BadResponse(f"content-length {length!r} is not a number")
            self._left = int(length)
            self.is_complete = self._left == 0

    def _plain(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        part = data[: self._left]
        self._left -= len(part)
        self.is_complete = self._left == 0
        return part

    def _chunks(self) -> bytes:
        """All that is there of chunks; lines of sizes stay in the buffer until they are whole."""
        parts = []
        buffer = self._buffer
        assert self._left is not None
        while buffer:
            if self._left > 2:  # content, and the line end after it
                part = bytes(buffer[: self._left - 2])
                del buffer[: len(part)]
                self._left -= len(part)
                parts.append(part)
            elif self._left > 0:
                if len(buffer) < self._left:
                    break
                if buffer[: self._left] != b"\r\n":
                    raise BadResponse("a chunk of the answer has no line end")
                del buffer[: self._left]
                self._left = 0
            elif not self._read_line():
                break
        return b"".join(parts)

    def _read_line(self) -> bool:
        """One line outside of chunks: a size, or a trailer. False when it is not whole."""
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_CHUNK_LINE_BYTES:
                raise BadResponse("a chunk's size line of the answer is too long")
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if self._in_trailers:
            if not line:
                self.is_complete = True
                self._buffer.clear()
            return True
        size = _chunk_size(line)
        self._in_trailers = size == 0
        self._left = size + 2 if size else 0
        return True


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdecimal() or len(code) != 3:
        raise BadResponse(f"{line[:80]!r} is not the first line of an HTTP/1.1 answer")
    return int(code)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        if not digits.isalnum():
            raise ValueError
        return int(digits, 16)
    except ValueError:
        raise BadResponse(f"{line[:80]!r} is not the size of a chunk") from None
