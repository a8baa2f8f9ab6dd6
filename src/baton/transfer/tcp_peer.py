"""The writer's side of one TCP peer: several connections ("lanes"), each a queue of its own.

A window's writes all go by the lane that its name hashes to, so they stay in posting order, while
a large one in another lane goes on beside them.

Invariant: the lanes live and die together; the loss of one fails the peer as a whole.
Elsewhere: one lane (tcp_lane.py), connecting (tcp.py).
"""

import functools
import socket
import threading
from collections.abc import Callable, Sequence

from baton.transfer.config import queue_of
from baton.transfer.io_loop import IoLoop
from baton.transfer.protocol import Copy, Ticket, TicketState, find_bad_copy
from baton.transfer.tcp_frames import MAX_TEXT_BYTES
from baton.transfer.tcp_lane import TcpLane
from baton.transfer.ticket import WriteAccount, WriteTicket

_CLOSED_HERE = "this side closed the peer"


class TcpPeer:
    """All connections to one owner, each with the loop that serves it. `on_closed(peer)` is called
    once, when the last has been closed."""

    def __init__(
        self,
        name: str,
        connections: Sequence[tuple[IoLoop, socket.socket]],
        source: memoryview,
        target_bytes: int,
        account: WriteAccount,
        on_closed: Callable[["TcpPeer"], None],
    ):
        self.name = name
        self._source_bytes = len(source)
        self._target_bytes = target_bytes
        self._account = account
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._loss = ""
        self._num_open = len(connections)
        self._lanes = [
            TcpLane(name, loop, connection, source, self._lose) for loop, connection in connections
        ]

    @property
    def is_alive(self) -> bool:
        return not self._loss

    def start(self) -> None:
        for lane in self._lanes:
            lane.loop.submit(lane.start)

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = self._account.new_ticket(window, copies)
        error = find_bad_copy(copies, self._source_bytes, self._target_bytes)
        if not error and len(window.encode()) > MAX_TEXT_BYTES:
            error = f"the window's name is longer than {MAX_TEXT_BYTES} bytes"
        error = error or self._loss
        if error:
            ticket.settle(TicketState.FAILED, f"write to {self.name}: {error}")
        else:
            self._lane_of(window).post(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, WriteTicket), "a ticket of another backend"
        ticket.is_cancel_requested = True
        self._lane_of(ticket.window).drop_cancelled()

    def close(self) -> None:
        with self._lock:
            self._loss = self._loss or _CLOSED_HERE
        closed = [self._end_lane(lane) for lane in self._lanes]
        if any(lane.loop.is_current_thread for lane in self._lanes):
            return  # in a completion callback: two of them must not wait for each other's loop
        for each in closed:
            each.wait()

    def _lane_of(self, window: str) -> TcpLane:
        return self._lanes[queue_of(window, len(self._lanes))]

    def _end_lane(self, lane: TcpLane) -> threading.Event:
        ended = threading.Event()

        def end() -> None:
            try:
                lane.end(TicketState.CANCELLED, _CLOSED_HERE)
            finally:
                ended.set()

        if lane.loop.is_current_thread:
            end()
        elif not lane.loop.submit(end):
            ended.set()
        return ended

    def _lose(self, reason: str) -> None:
        """A lane was closed: so are the others, soon."""
        with self._lock:
            is_first = not self._loss
            self._loss = self._loss or reason
            self._num_open -= 1
            is_last = self._num_open == 0
        if is_first:
            for lane in self._lanes:
                lane.loop.submit(functools.partial(lane.end, TicketState.FAILED, reason))
        if is_last:
            self._on_closed(self)
