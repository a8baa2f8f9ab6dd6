"""One of a TCP peer's connections: sends its queued writes in order and settles them as answered.

Invariant: a ticket becomes DONE or CANCELLED by the owner's answer only, or CANCELLED when none of
its bytes were sent or this side closed the connection; the end of the connection fails all others.
Elsewhere: frames (tcp_frames.py), which writes are in this queue (tcp_peer.py).
"""

import fcntl
import socket
import struct
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator

from baton.transfer.io_loop import READABLE, WRITABLE, IoLoop
from baton.transfer.protocol import TicketState
from baton.transfer.tcp_frames import (
    FROM_OWNER,
    HEADER,
    FrameError,
    Header,
    Kind,
    drop_front,
    pack_frame,
    pack_write,
    parse_header,
    parse_text,
    split_frames,
)
from baton.transfer.ticket import WriteTicket

_TURN_BYTES = 4 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class TcpLane:
    """One connection to an owner, served by `loop`. `on_closed(reason)` is called once, there."""

    def __init__(
        self,
        name: str,
        loop: IoLoop,
        connection: socket.socket,
        source: memoryview,
        on_closed: Callable[[str], None],
    ):
        self.name = name
        self.loop = loop
        self._socket = connection
        self._source = source
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._loss = ""
        self._queue: deque[WriteTicket] = deque()
        # The rest belongs to the loop's thread.
        self._frames: Iterator[list[memoryview]] = iter(())
        self._unsent: list[memoryview] = []
        self._unanswered: dict[int, WriteTicket] = {}
        self._answers = bytearray()
        self._mask = READABLE
        self._is_registered = False
        self._num_bytes_sent = 0

    def start(self) -> None:
        """On the loop's thread."""
        if not self._loss:
            self.loop.register(self._socket.fileno(), self._mask, self)
            self._is_registered = True

    def post(self, ticket: WriteTicket) -> None:
        ticket.measure = self._num_bytes_taken
        with self._lock:
            loss = self._loss
            if not loss:
                self._queue.append(ticket)
        if loss:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {loss}")
        else:
            self.loop.submit(self._send_guarded)

    def drop_cancelled(self) -> None:
        """Settle what is to be cancelled and was not begun, soon."""
        self.loop.submit(self._drop_cancelled)

    def on_ready(self, mask: int) -> None:
        try:
            if mask & ~WRITABLE:
                self._receive()
            if not self._loss:
                self._send_turn()
        except FrameError as error:
            self.end(TicketState.FAILED, f"the owner broke the protocol: {error}")
        except OSError as error:
            self.end(TicketState.FAILED, f"connection lost: {error}")

    def on_bug(self, error: Exception) -> None:
        self.end(TicketState.FAILED, f"internal error: {error!r}")

    def _num_bytes_taken(self) -> int:
        """What the peer's host has acknowledged: the socket's buffer alone is no progress, and may
        take long to empty."""
        try:
            unacknowledged = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # closed meanwhile
            return self._num_bytes_sent
        return self._num_bytes_sent - int.from_bytes(unacknowledged, sys.byteorder)

    def _send_guarded(self) -> None:
        # While the socket is full, its readiness calls us.
        if not self._loss and not self._mask & WRITABLE:
            self.on_ready(WRITABLE)

    def _send_turn(self) -> None:
        left = _TURN_BYTES
        try:
            while left > 0 and self._fill():
                sent = self._socket.sendmsg(self._unsent)
                self._num_bytes_sent += sent
                self._unsent = drop_front(self._unsent, sent)
                left -= sent
        except BlockingIOError:
            pass
        self._watch(READABLE | WRITABLE if self._unsent or left <= 0 else READABLE)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self.loop.modify(self._socket.fileno(), mask)

    def _fill(self) -> bool:
        """Have something to send; False when everything has been sent."""
        while not self._unsent:
            frame = next(self._frames, None)
            if frame is not None:
                self._unsent = frame
                continue
            with self._lock:
                if not self._queue:
                    return False
                ticket = self._queue.popleft()
            if ticket.is_cancel_requested:
                ticket.settle(TicketState.CANCELLED, "cancelled by this side")
            else:
                self._unanswered[ticket.ticket_id] = ticket
                self._frames = self._frames_of(ticket)
        return True

    def _frames_of(self, ticket: WriteTicket) -> Iterator[list[memoryview]]:
        ticket.start()
        ticket_id = ticket.ticket_id
        yield [memoryview(pack_frame(Kind.BEGIN, ticket_id, ticket.window))]
        for group in split_frames(ticket.copies):
            if ticket.is_cancel_requested or not ticket.is_pending:
                break
            ranges = [self._source[c.src_offset : c.src_offset + c.num_bytes] for c in group]
            yield [memoryview(pack_write(ticket_id, group)), *ranges]
        last = Kind.CANCEL if ticket.is_cancel_requested else Kind.END
        yield [memoryview(pack_frame(last, ticket_id))]

    def _drop_cancelled(self) -> None:
        with self._lock:
            cancelled = [ticket for ticket in self._queue if ticket.is_cancel_requested]
            for ticket in cancelled:
                self._queue.remove(ticket)
        for ticket in cancelled:
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")

    def _receive(self) -> None:
        try:
            chunk = self._socket.recv(64 << 10)
        except BlockingIOError:
            return
        if not chunk:
            self.end(TicketState.FAILED, "the owner has closed its region or died")
            return
        self._answers += chunk
        while len(self._answers) >= HEADER.size:
            header = parse_header(bytes(self._answers[: HEADER.size]), FROM_OWNER)
            end = HEADER.size + header.num_table_bytes
            if len(self._answers) < end:
                return
            text = parse_text(bytes(self._answers[HEADER.size : end]))
            del self._answers[:end]
            self._settle(header, text)

    def _settle(self, header: Header, text: str) -> None:
        ticket = self._unanswered.pop(header.ticket_id, None)
        if ticket is None:
            raise FrameError(f"an answer to write {header.ticket_id}, which does not wait for one")
        if header.kind is Kind.DONE:
            ticket.settle(TicketState.DONE)
        elif header.kind is Kind.CANCELLED:
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")
        else:
            ticket.settle(TicketState.FAILED, f"write to {self.name} refused: {text}")

    def end(self, state: TicketState, reason: str) -> None:
        """Close the connection and settle everything that is pending; on the loop's thread."""
        with self._lock:
            if self._loss:
                return
            self._loss = reason
            pending = [*self._unanswered.values(), *self._queue]
            self._queue.clear()
        self._unanswered.clear()
        self._frames, self._unsent = iter(()), []
        if self._is_registered:
            self.loop.unregister(self._socket.fileno())
        if pending:
            # Bytes still in the socket's buffer must not trickle out after we have let go.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()
        for ticket in pending:
            ticket.settle(state, f"write to {self.name}: {reason}")
        self._on_closed(reason)
