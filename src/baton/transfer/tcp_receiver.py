"""The owner's side of one TCP writer: checks every range, then receives straight into the region.

Invariant: bytes enter the region only inside a window's lock while that window is open, and the
lock is never held while waiting for the network. So closing a window waits for one receive that
has its bytes already, however slow or dead the writer is.
Elsewhere: frames (tcp_frames.py), accepting connections (tcp.py).
"""

import enum
import socket
from collections.abc import Callable
from dataclasses import dataclass

from baton.kernels._native import ReceiveRun
from baton.transfer.guests import GuestList
from baton.transfer.io_loop import READABLE, WRITABLE, IoLoop
from baton.transfer.pinned_buffer import PinnedBuffer
from baton.transfer.read_ahead import ReadAhead
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
_LOCKED_BYTES = 1 << 20
"""Closing a window waits for so much of copying, or twice that: about 0.2 ms each."""

_WAKE_BYTES = 128 << 10
"""While twice as much of a payload is to come, the kernel wakes us for so much, not for each
segment. The last bytes of a frame never wait for others, and a full socket wakes us anyway."""

_SINK_BYTES = 256 << 10
_READ_AHEAD_BYTES = 2 * (HEADER.size + MAX_RANGES * RANGE.size)
"""Holds any frame but its payload."""


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
    """What a writer may reach: the bytes, their windows, and who may at all."""

    memory: PinnedBuffer
    windows: WindowTable
    guests: GuestList


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
        self._ahead = ReadAhead(_READ_AHEAD_BYTES)
        self._need = GREETING.size
        self._header = Header(Kind.END, 0, 0, 0)
        self._incoming: _Incoming | None = None
        self._payload = ReceiveRun(region.memory.address, region.memory.num_bytes)
        self._sink = memoryview(bytearray(0))
        self._unsent = bytearray()
        self._mask = READABLE
        self._wake_bytes = 1
        self.writer_id = ""
        self.guest = ""
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
        if self._is_registered:
            self.loop.unregister(self._socket.fileno())
        self._socket.close()
        self._on_closed(self, bad)

    def _receive_turn(self) -> None:
        left = _TURN_BYTES
        while left > 0 and self._is_open:
            try:
                received = self._receive()
            except BlockingIOError:
                return
            if received == 0:
                self.close()
            left -= received
            self._advance()

    def _receive(self) -> int:
        """How much came; 0 at the end of the stream. Raises BlockingIOError if nothing did."""
        window = self._open_window()
        if window is not None:
            with window.lock:
                if window.is_open:
                    return self._receive_payload()
        if self._expect is _Expect.PAYLOAD:
            return self._drain_payload()
        received = self._socket.recv_into(self._ahead.room())
        self._ahead.add(received)
        return received

    def _receive_payload(self) -> int:
        """Straight into its place. Behind it come a header and mostly a table, and then a payload:
        taken along, they save system calls."""
        left = self._payload.num_bytes_left
        fd, beyond = self._socket.fileno(), self._ahead.room()
        received = self._payload.receive(fd, _LOCKED_BYTES, beyond)
        if received == 0:
            raise BlockingIOError
        if received < 0:
            return 0
        self._ahead.add(received - (left - self._payload.num_bytes_left))
        self._after_payload()
        return received

    def _drain_payload(self) -> int:
        if not self._sink:
            self._sink = memoryview(bytearray(_SINK_BYTES))
        received = self._socket.recv_into(self._sink[: self._payload.num_bytes_left])
        self._payload.skip(received)
        self._after_payload()
        return received

    def _open_window(self) -> Window | None:
        """Of the payload that is being received; None if there is none, or it is not wanted."""
        if self._expect is not _Expect.PAYLOAD:
            return None
        incoming = self._incoming
        assert incoming is not None
        if incoming.window is not None and not incoming.window.is_open:
            self._refuse(incoming, f"window {incoming.window.name} was closed by its owner")
        return incoming.window

    def _advance(self) -> None:
        """Act on every frame that is complete; there may be empty tables."""
        while self._is_open:
            if self._expect is _Expect.PAYLOAD:
                if not self._ahead.num_bytes:
                    return
                self._store_ahead()
            elif self._ahead.num_bytes >= self._need:
                self._act_on(self._ahead.take(self._need))
            else:
                return

    def _store_ahead(self) -> None:
        """The first bytes of a payload, which came together with its header."""
        num_bytes = min(self._ahead.num_bytes, self._payload.num_bytes_left)
        content = self._ahead.take(num_bytes)
        window = self._open_window()
        if window is not None:
            with window.lock:
                if window.is_open:
                    self._payload.store(content)
        self._payload.skip(num_bytes)
        self._after_payload()

    def _after_payload(self) -> None:
        self._choose_wake_up()
        if self._payload.num_bytes_left == 0:
            self._expect_control(_Expect.HEADER, HEADER.size)

    def _choose_wake_up(self) -> None:
        is_much = self._payload.num_bytes_left >= 2 * _WAKE_BYTES
        num_bytes = _WAKE_BYTES if is_much else 1
        if num_bytes != self._wake_bytes:
            self._wake_bytes = num_bytes
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, num_bytes)

    def _expect_control(self, expect: _Expect, need: int) -> None:
        self._expect, self._need = expect, need

    def _act_on(self, frame: memoryview) -> None:
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
        elif not self._region.guests.let_in(
            greeting.token, lambda guest: self._enter(guest, greeting.writer_id)
        ):
            status = Status.WRONG_TOKEN
            self.is_stranger = True
        elif greeting.region_bytes != self._region.memory.num_bytes:
            status = Status.WRONG_SIZE
        else:
            status = Status.WELCOME
        self._socket.send(pack_welcome(status))  # the first bytes on a new socket always fit
        if status is not Status.WELCOME:
            raise FrameError(f"greeting refused: {status.name}")
        self._expect_control(_Expect.HEADER, HEADER.size)

    def _enter(self, guest: str, writer_id: bytes) -> None:
        self.guest, self.writer_id = guest, writer_id.hex()

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
        if incoming.window is None:
            self._payload.expect_unwanted(self._header.num_bytes)
        else:
            self._payload.expect(ranges)
        self._choose_wake_up()
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
        if mask != self._mask:
            self._mask = mask
            self.loop.modify(self._socket.fileno(), mask)
