"""One connection to another server, and the calls that are made over it.

A call is told to a `Receiver` as it happens, without a task of its own.
Invariants: a receiver hears exactly one of `answer_ended` and `call_failed`, last, and nothing
after `abort`; a connection is used again only after a complete answer that nothing followed.
Elsewhere: which connection a call gets (client.py), what failures mean (router/legs.py).
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, cast

import httptools

from baton.router.http.origin import Origin

RawHeaders = Sequence[tuple[bytes, bytes]]
"""As they came, but for the names, which are lower case."""

MAX_HEAD_BYTES: Final = 256 * 2**10
_BIG_BYTES: Final = 64 * 2**10


class UpstreamError(Exception):
    """An call failed; the message is one line for people."""


class NotConnected(UpstreamError):
    """No connection could be made: nothing was sent."""


class NotConnectedInTime(NotConnected):
    """Nobody refused either."""

    def __init__(self) -> None:
        super().__init__("it did not answer in time")


class Broken(UpstreamError):
    """The connection ended, or what came made no sense."""


class Receiver(Protocol):
    def request_sent(self) -> None:
        """It is on a connection; said again if it has to be sent again."""
        ...

    def answer_began(self, status: int, headers: RawHeaders) -> None: ...
    def body_arrived(self, data: bytes) -> None: ...
    def answer_ended(self) -> None: ...
    def call_failed(self, error: UpstreamError) -> None: ...


class Pool(Protocol):
    """Who owns the connections."""

    is_closed: bool

    def connect(self, call: "Call") -> None: ...
    def no_longer_waits(self, call: "Call") -> None: ...
    def put(self, connection: "UpstreamConnection") -> None: ...
    def note_open(self, connection: "UpstreamConnection") -> None: ...
    def note_closed(self, connection: "UpstreamConnection") -> None: ...


class Call:
    """One request under way. `is_repeatable`: it may be sent again if a pooled connection turns
    out to have been closed by the other side."""

    __slots__ = ("_pool", "body", "connection", "head", "is_paused", "is_repeatable", "origin",
                 "receiver")  # fmt: skip

    def __init__(
        self,
        pool: "Pool",
        origin: Origin,
        head: bytes,
        body: bytes,
        receiver: Receiver,
        is_repeatable: bool,
    ):
        self._pool = pool
        self.origin = origin
        self.head = head
        self.body = body
        self.receiver: Receiver | None = receiver
        self.is_repeatable = is_repeatable
        self.is_paused = False
        self.connection: UpstreamConnection | None = None

    def abort(self) -> None:
        """Hang up, unless it is over; the receiver hears no more."""
        self.receiver = None
        if self.connection is not None:
            self.connection.drop()
        else:
            self._pool.no_longer_waits(self)

    def pause(self) -> None:
        """Take no more of the answer for now."""
        self.is_paused = True
        if self.connection is not None:
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            if self.connection is not None:
                self.connection.transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.call_failed(error)


class UpstreamConnection(asyncio.Protocol):
    """One connection: with an call it is at work, without one it waits in the pool."""

    __slots__ = ("_ends_with_connection", "_has_answer", "_headers", "_is_complete", "_may_stay",
                 "_num_head_bytes", "_parser", "_pieces", "_pool", "_saw_bytes", "_status", "call",
                 "idle_since_s", "on_body", "origin", "transport", "was_idle")  # fmt: skip

    def __init__(self, pool: Pool, origin: Origin):
        self._pool = pool
        self.origin = origin
        self.call: Call | None = None
        self.transport: asyncio.Transport
        self.idle_since_s = 0.0
        self.was_idle = False
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # no Python call per chunk
        self._reset()
        self._parser = httptools.HttpResponseParser(self)

    def _reset(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._num_head_bytes = 0
        self._status = 0
        self._has_answer = self._is_complete = self._saw_bytes = False
        self._ends_with_connection = self._may_stay = False

    def start(self, call: Call) -> None:
        call.connection, self.call = self, call
        if call.receiver is not None:
            call.receiver.request_sent()
        if len(call.body) < _BIG_BYTES:
            self.transport.write(call.head + call.body)
        else:
            self.transport.write(call.head)
            self.transport.write(call.body)
        if call.is_paused:
            self.transport.pause_reading()

    def drop(self) -> None:
        """Close at once; the call was told, or does not want to know."""
        self.call = None
        self.transport.abort()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.note_open(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.note_closed(self)
        call, self.call = self.call, None
        if call is None:
            return
        call.connection = None
        receiver = call.receiver
        if self._ends_with_connection and error is None and receiver is not None:
            call.receiver = None
            receiver.answer_ended()
        elif self.was_idle and not self._saw_bytes and call.is_repeatable:
            self._pool.connect(call)
        else:
            call.fail(Broken("it closed the connection before the answer was complete"))

    def data_received(self, data: bytes) -> None:
        if self.call is None:
            self.transport.abort()  # nobody asked
            return
        self._saw_bytes = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"its answer is no HTTP: {error}")
            return
        if not self._status:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._break(f"its headers are larger than {MAX_HEAD_BYTES} bytes")
                return
        self._tell()

    def _break(self, reason: str) -> None:
        call = self.call
        assert call is not None
        call.connection = None
        self.drop()
        call.fail(Broken(reason))

    def _tell(self) -> None:
        """Pass on what the parser has found; any of it may make the receiver abort."""
        call = self.call
        assert call is not None
        if self._status and not self._has_answer:
            self._has_answer = True
            if call.receiver is not None:
                call.receiver.answer_began(self._status, self._headers)
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if call.receiver is not None:
                call.receiver.body_arrived(data)
        if self._is_complete and self.call is call:
            self._finish(call)

    def _finish(self, call: Call) -> None:
        call.resume()
        call.connection, self.call = None, None
        receiver, call.receiver = call.receiver, None
        if self._may_stay and not self._pool.is_closed:
            self._reset()
            self._pool.put(self)
        else:
            self.transport.abort()
        if receiver is not None:
            receiver.answer_ended()

    # the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # a trailer says nothing that is used
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_complete:
            raise ValueError("a second answer to one request")
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []  # 100 Continue and its like say nothing that is passed on
            return
        self._status = status
        names = {name for name, _ in self._headers}
        self._ends_with_connection = not (
            b"content-length" in names or b"transfer-encoding" in names or status in (204, 304)
        )

    def on_message_complete(self) -> None:
        self._is_complete = self._status != 0
        self._may_stay = self._parser.should_keep_alive()  # the parser knows it only now


def header_block(headers: Mapping[str, str]) -> bytes:
    """Header lines as they go over the wire."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")


def request_head(
    method: bytes, target: bytes, origin: Origin, header_lines: bytes, num_body_bytes: int
) -> bytes:
    """Everything before the body."""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (
        method,
        target,
        origin.host_line,
        header_lines,
        num_body_bytes,
    )
