"""The owner's side of one TCP writer: checks every range, then receives straight into the region.

Invariant: bytes enter the region only inside a window's lock while that window is open, and the
lock is never held while waiting for the network. So closing a window waits for one receive that
has its bytes already, however slow or dead the writer is.
Elsewhere: frames (tcp_frames.py), accepting connections (tcp.py).
"""

import enum
import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass

from baton.transfer.io_loop import READABLE, WRITABLE, IoLoop
from baton.transfer.tcp_frames import (
    FROM_WRITER,
    GREETING,
    HEADER,
    MAX_RANGES,
    RANGE,
    VERSION,
    FrameError,
    Header,
    Kind,
    Status,
    drop_front,
    pack_frame,
    pack_welcome,
    parse_greeting,
    parse_header,
    parse_ranges,
    parse_text,
)
from baton.transfer.windows import Window, WindowTable

_TURN_BYTES = 4 << 20
"""After so much of one writer the others get their turn."""

_MAX_UNSENT_BYTES = 1 << 20
_SINK_BYTES = 256 << 10


class _Expect(enum.Enum):
    GREETING = "greeting"
    HEADER = "header"
    TABLE = "table"
    PAYLOAD = "payload"


@dataclass
class _Incoming:
    """The write that is being received. `window` is None once it has been refused."""

    ticket_id: int
    window: Window | None


@dataclass(frozen=True)
class Region:
    """What a writer may reach: the bytes, their windows, and the token of the descriptor."""

    view: memoryview
    windows: WindowTable
    token: bytes


class TcpReceiver:
    """One accepted connection; all on the loop's thread.

    `on_closed(receiver, bad)` is called once; `bad` says how the protocol was broken, else "".
    """

    def __init__(
        self,
        loop: IoLoop,
        connection: socket.socket,
        region: Region,
        on_closed: Callable[["TcpReceiver", str], None],
    ):
        self.loop = loop
        self._socket = connection
        self._region = region
        self._on_closed = on_closed
        self._is_open = True
        self._is_registered = False
        self._expect = _Expect.GREETING
        self._control = memoryview(bytearray(MAX_RANGES * RANGE.size))
        self._have = 0
        self._need = GREETING.size
        self._header = Header(Kind.END, 0, 0, 0)
        self._incoming: _Incoming | None = None
        self._targets: list[memoryview] = []
        self._num_payload_left = 0
        self._sink = memoryview(bytearray(0))
        self._unsent = bytearray()
        self.writer_id = ""
        self.is_stranger = False

    def start(self, greeting_timeout_s: float) -> None:
        if self._is_open:
            self.loop.register(self._socket.fileno(), READABLE, self)
            self._is_registered = True
            self.loop.call_later(greeting_timeout_s, self._expire)

    def on_ready(self, mask: int) -> None:
        try:
            if mask & WRITABLE:
                self._send_answers()
            self._receive_turn()
        except FrameError as error:
            self.close(bad=str(error))
        except OSError:
            self.close()

    def on_bug(self, error: Exception) -> None:
        self.close()

    def _expire(self) -> None:
        """The time for greeting is over."""
        if self._expect is _Expect.GREETING:
            self.close(bad="no greeting in time")

    def close(self, bad: str = "") -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._targets = []
        if self._is_registered:
            self.loop.unregister(self._socket.fileno())
        self._socket.close()
        self._on_closed(self, bad)

    def _receive_turn(self) -> None:
        left = _TURN_BYTES
        while left > 0 and self._is_open:
            try:
                if self._expect is _Expect.PAYLOAD:
                    received = self._receive_payload()
                else:
                    received = self._receive_control()
            except BlockingIOError:
                return
            if received == 0:
                self.close()
            left -= received
            self._advance()

    def _receive_control(self) -> int:
        received = self._socket.recv_into(self._control[self._have : self._need])
        self._have += received
        return received

    def _receive_payload(self) -> int:
        incoming = self._incoming
        assert incoming is not None
        window = incoming.window
        if window is None:
            return self._drain_payload()
        with window.lock:
            if window.is_open:
                # A header always follows a payload: take it along, to save a system call.
                buffers = [*self._targets, self._control[: HEADER.size]]
                received = self._socket.recvmsg_into(buffers)[0]
                return self._count_payload(received)
        self._refuse(incoming, f"window {window.name} was closed by its owner")
        return self._drain_payload()

    def _count_payload(self, received: int) -> int:
        payload = min(received, self._num_payload_left)
        self._num_payload_left -= payload
        self._targets = drop_front(self._targets, payload)
        if self._num_payload_left == 0:
            self._expect_control(_Expect.HEADER, HEADER.size, have=received - payload)
        return received

    def _drain_payload(self) -> int:
        self._targets = []
        if not self._sink:
            self._sink = memoryview(bytearray(_SINK_BYTES))
        received = self._socket.recv_into(self._sink[: self._num_payload_left])
        self._num_payload_left -= received
        if self._num_payload_left == 0:
            self._expect_control(_Expect.HEADER, HEADER.size)
        return received

    def _expect_control(self, expect: _Expect, need: int, have: int = 0) -> None:
        self._expect, self._need, self._have = expect, need, have

    def _advance(self) -> None:
        """Act on every control frame that is complete; there may be empty tables."""
        while self._is_open and self._expect is not _Expect.PAYLOAD and self._have == self._need:
            frame = self._control[: self._need]
            if self._expect is _Expect.GREETING:
                self._greet(frame)
            elif self._expect is _Expect.HEADER:
                self._header = parse_header(frame, FROM_WRITER)
                self._expect_control(_Expect.TABLE, self._header.num_table_bytes)
            else:
                self._expect_control(_Expect.HEADER, HEADER.size)
                self._act(self._header, frame)

    def _greet(self, frame: memoryview) -> None:
        greeting = parse_greeting(frame)
        if greeting.version != VERSION:
            status = Status.WRONG_VERSION
        elif not hmac.compare_digest(greeting.token, self._region.token):
            status = Status.WRONG_TOKEN
            self.is_stranger = True
        elif greeting.region_bytes != len(self._region.view):
            status = Status.WRONG_SIZE
        else:
            status = Status.WELCOME
            self.writer_id = greeting.writer_id.hex()
        self._socket.send(pack_welcome(status))  # the first bytes on a new socket always fit
        if status is not Status.WELCOME:
            raise FrameError(f"greeting refused: {status.name}")
        self._expect_control(_Expect.HEADER, HEADER.size)

    def _act(self, header: Header, table: memoryview) -> None:
        if header.kind is Kind.BEGIN:
            self._begin(header, parse_text(table))
            return
        incoming = self._incoming
        if incoming is None or incoming.ticket_id != header.ticket_id:
            raise FrameError(f"{header.kind.name} of write {header.ticket_id}, which did not begin")
        if header.kind is Kind.WRITE:
            self._prepare_payload(incoming, parse_ranges(table, header.num_bytes))
        else:
            self._finish(incoming, header.kind)

    def _begin(self, header: Header, window_name: str) -> None:
        if self._incoming is not None:
            raise FrameError(f"write {header.ticket_id} begins inside of another")
        window = self._region.windows.get(window_name)
        self._incoming = _Incoming(header.ticket_id, window)
        if window is None:
            self._refuse(self._incoming, f"window {window_name} is not open")

    def _prepare_payload(self, incoming: _Incoming, ranges: list[tuple[int, int]]) -> None:
        if not ranges:
            raise FrameError("a WRITE has no ranges")
        window = incoming.window
        outside = [pair for pair in ranges if window is not None and not window.contains(*pair)]
        if window is not None and outside:
            start, end = outside[0]
            self._refuse(incoming, f"range [{start}, {end}) is outside of window {window.name}")
        self._targets = [self._region.view[start:end] for start, end in ranges]
        self._num_payload_left = self._header.num_bytes
        self._expect = _Expect.PAYLOAD

    def _finish(self, incoming: _Incoming, kind: Kind) -> None:
        self._incoming = None
        if incoming.window is None:
            return  # answered when it was refused
        if kind is Kind.CANCEL:
            self._answer(pack_frame(Kind.CANCELLED, incoming.ticket_id))
        elif incoming.window.is_open:
            self._answer(pack_frame(Kind.DONE, incoming.ticket_id))
        else:
            self._refuse(incoming, f"window {incoming.window.name} was closed by its owner")

    def _refuse(self, incoming: _Incoming, reason: str) -> None:
        incoming.window = None
        self._answer(pack_frame(Kind.REFUSED, incoming.ticket_id, reason))

    def _answer(self, frame: bytes) -> None:
        self._unsent += frame
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            raise FrameError("the writer does not read its answers")
        self._send_answers()

    def _send_answers(self) -> None:
        mask = READABLE
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            mask = READABLE | WRITABLE
        self.loop.modify(self._socket.fileno(), mask)
