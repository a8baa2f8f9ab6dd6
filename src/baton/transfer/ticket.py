"""A posted write and the account of all of them, shared by every backend.

Invariant: a ticket leaves PENDING exactly once, and each time that happens the account counts it
and calls the completion callback once.
Elsewhere: moving the bytes (shm_peer.py, tcp_peer.py).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from baton.transfer.protocol import (
    CompletionCallback,
    Copy,
    TicketState,
    TransportStats,
    merge_adjacent,
)

_log = logging.getLogger(__name__)


class WriteTicket:
    """One posted write: PENDING, then DONE, FAILED or CANCELLED for ever."""

    def __init__(
        self, ticket_id: int, window: str, copies: Sequence[Copy], account: "WriteAccount"
    ):
        self.ticket_id = ticket_id
        self.window = window
        self.copies = merge_adjacent([copy for copy in copies if copy.num_bytes])
        self.num_bytes = sum(copy.num_bytes for copy in self.copies)
        self.is_cancel_requested = False
        self.num_bytes_moved = 0
        self.measure: Callable[[], int] = lambda: 0
        """Progress that is known elsewhere than in `num_bytes_moved`; called from any thread."""
        self._account = account
        self._lock = threading.Lock()
        self._state = TicketState.PENDING
        self._error = ""
        self._started_s = 0.0

    @property
    def state(self) -> TicketState:
        return self._state

    @property
    def error(self) -> str:
        return self._error

    @property
    def progress(self) -> int:
        return self.num_bytes_moved + self.measure()

    @property
    def is_pending(self) -> bool:
        return self._state is TicketState.PENDING

    def start(self, ago_s: float = 0.0) -> None:
        """The first byte is about to move, or did `ago_s` seconds ago."""
        self._started_s = time.perf_counter() - ago_s

    def settle(self, state: TicketState, error: str = "") -> bool:
        """Leave PENDING; False if another cause was first."""
        assert state is not TicketState.PENDING
        with self._lock:
            if self._state is not TicketState.PENDING:
                return False
            self._error = error
            self._state = state
        self._account.record(self, time.perf_counter() - self._started_s)
        return True


class WriteAccount:
    """Counts what became of a transport's tickets and tells whoever waits for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callback: CompletionCallback | None = None
        self._num_tickets = 0
        self._num_writes = 0
        self._num_bytes = 0
        self._num_failures = 0
        self._write_seconds = 0.0
        self._num_bad_connections = 0
        self._num_strangers = 0

    def new_ticket(self, window: str, copies: Sequence[Copy]) -> WriteTicket:
        with self._lock:
            self._num_tickets += 1
            ticket_id = self._num_tickets
        return WriteTicket(ticket_id, window, copies, self)

    def set_callback(self, callback: CompletionCallback) -> None:
        self._callback = callback

    def record(self, ticket: WriteTicket, seconds: float) -> None:
        with self._lock:
            if ticket.state is TicketState.DONE:
                self._num_writes += 1
                self._num_bytes += ticket.num_bytes
                self._write_seconds += seconds
            elif ticket.state is TicketState.FAILED:
                self._num_failures += 1
        self.call_back()

    def call_back(self) -> None:
        """Tell whoever waits that something changed."""
        if self._callback is not None:
            try:
                self._callback()
            except Exception:
                # The caller's bug must not stop the thread that moves everybody's bytes.
                _log.exception("the completion callback of a transport raised")

    def record_bad_connection(
        self, backend: str, reason: str, *, is_stranger: bool = False
    ) -> None:
        """`is_stranger`: it spoke the protocol but did not know the region's token."""
        with self._lock:
            self._num_bad_connections += 1
            self._num_strangers += is_stranger
            is_first = self._num_bad_connections == 1
        level = logging.WARNING if is_first else logging.DEBUG
        _log.log(level, "%s transport closed a bad inbound connection: %s", backend, reason)

    def stats(self) -> TransportStats:
        with self._lock:
            return TransportStats(
                num_writes=self._num_writes,
                num_bytes=self._num_bytes,
                num_failures=self._num_failures,
                write_seconds=self._write_seconds,
                num_bad_connections=self._num_bad_connections,
                num_strangers=self._num_strangers,
            )
