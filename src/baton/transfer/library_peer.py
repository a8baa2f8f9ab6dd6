"""The writer's side of one peer behind a transfer library: one thread that posts, asks and settles.

A batch that was posted cannot be called back. When the peer hangs or this side closes it, the
thread follows the batch to its end; until then its ticket stays PENDING, so that nobody reuses the
blocks at either end, and the owner sees this writer alive.

Invariant: a batch is posted only after all earlier ones have arrived, and nothing is posted after
the peer was closed or lost. Leaving with BYE means that every batch is known to have arrived.
Elsewhere: the library (library.py), the connection that shows the owner's end (companion.py).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from baton.transfer.library import LibraryError, LibraryTarget, LibraryWrite, split_batches
from baton.transfer.protocol import Copy, Ticket, TicketState, find_bad_copy
from baton.transfer.ticket import WriteAccount, WriteTicket

_CLOSE_GRACE_S = 0.5
"""So long a close waits for the batch under way before it leaves the thread alone with it."""

_SHORTEST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 1e-3
_JOIN_TIMEOUT_S = 2.0


class LibraryPeer:
    """`accept` makes the library's side of it, on the peer's thread. `let_go(peer, is_clean)` is
    called once, when nothing more is asked of the library. A batch that does not arrive within
    `stall_timeout_s` ends the peer."""

    def __init__(
        self,
        name: str,
        accept: Callable[[], LibraryTarget],
        source_bytes: int,
        target_bytes: int,
        account: WriteAccount,
        stall_timeout_s: float,
        let_go: Callable[["LibraryPeer", bool], None],
    ):
        self.name = name
        self._accept = accept
        self._source_bytes = source_bytes
        self._target_bytes = target_bytes
        self._account = account
        self._stall_timeout_s = stall_timeout_s
        self._let_go = let_go
        self._condition = threading.Condition()
        self._queue: deque[WriteTicket] = deque()
        self._current: WriteTicket | None = None
        self._is_closed = False
        self._is_proven = False
        self._has_ended = False
        self._is_clean = True
        self._loss = ""
        self._must_abandon = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"baton-{name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        return not self._loss and not self._is_closed

    def start(self, timeout_s: float) -> None:
        """Reach the peer through the library. Raises LibraryError when that does not succeed."""
        self._thread.start()
        with self._condition:
            self._condition.wait_for(lambda: self._is_proven or not self.is_alive, timeout_s)
            if self._is_proven and self.is_alive:
                return
            why = self._loss or f"no write got through within {timeout_s:g} s"
            if self._is_closed:
                why = "this side's transport has been closed"
        self.close()
        raise LibraryError(why)

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = self._account.new_ticket(window, copies)
        error = find_bad_copy(copies, self._source_bytes, self._target_bytes)
        with self._condition:
            error = error or self._loss or ("this side closed the peer" if self._is_closed else "")
            if not error:
                self._queue.append(ticket)
                self._condition.notify_all()
        if error:
            ticket.settle(TicketState.FAILED, self._describe(error))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, WriteTicket), "a ticket of another backend"
        ticket.is_cancel_requested = True
        with self._condition:
            is_queued = ticket in self._queue
            if is_queued:
                self._queue.remove(ticket)
        if is_queued:
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")

    def fail(self, loss: str) -> None:
        """The owner is gone: fail what is queued, and have the thread fail what it writes."""
        self._must_abandon.set()
        self._lose(loss)

    def close(self) -> None:
        is_own_thread = threading.current_thread() is self._thread
        with self._condition:
            self._is_closed = True
            queued, self._queue = self._queue, deque()
            self._condition.notify_all()
            if not is_own_thread:
                self._condition.wait_for(lambda: self._has_ended, _CLOSE_GRACE_S)
        for ticket in queued:
            ticket.settle(TicketState.CANCELLED, "this side closed the peer")
        if not is_own_thread and self._has_ended:
            self._thread.join()

    def abandon(self) -> None:
        """After `close`: follow nothing any more."""
        self._must_abandon.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_TIMEOUT_S)
        with self._condition:
            current = self._current
        if current is not None:  # its thread is stuck in the library's handshake
            current.settle(TicketState.CANCELLED, self._describe("this side closed the peer"))

    def _run(self) -> None:
        target: LibraryTarget | None = None
        try:
            if not self.is_alive:
                return  # closed before it was started
            target = self._accept()
            self._follow(target.prove())
            with self._condition:
                self._is_proven = True
                self._condition.notify_all()
            while (ticket := self._next_ticket()) is not None:
                self._write(ticket, target)
        except LibraryError as error:
            self._is_clean = False
            self._lose(str(error))
        except Exception as error:
            self._is_clean = False
            self._lose(f"internal error: {error!r}")
            raise
        finally:
            if target is not None:
                target.close(is_owner_lost=bool(self._loss))
            self._let_go(self, self._is_clean)
            with self._condition:
                self._has_ended = True
                self._condition.notify_all()

    def _next_ticket(self) -> WriteTicket | None:
        """None once there will be none."""
        with self._condition:
            self._condition.wait_for(lambda: self._queue or not self.is_alive)
            self._current = self._queue.popleft() if self.is_alive else None
            return self._current

    def _write(self, ticket: WriteTicket, target: LibraryTarget) -> None:
        ticket.start()
        try:
            for batch in split_batches(ticket.copies):
                if self._must_stop(ticket):
                    break
                self._follow(target.post(batch))
                ticket.num_bytes_moved += sum(copy.num_bytes for copy in batch)
        except LibraryError as error:
            ticket.settle(TicketState.FAILED, self._describe(self._loss or str(error)))
            raise
        finally:
            with self._condition:
                self._current = None
        # Looked at once more after the last batch: what went to an owner that has died meanwhile
        # has not arrived.
        if self._loss:
            ticket.settle(TicketState.FAILED, self._describe(self._loss))
        elif self._must_stop(ticket):
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")
        else:
            ticket.settle(TicketState.DONE)

    def _follow(self, write: LibraryWrite) -> None:
        """Until it has arrived. Raises LibraryError when it will not, or nobody needs to know."""
        give_up_s = time.monotonic() + self._stall_timeout_s
        pause_s = _SHORTEST_PAUSE_S
        while not write.poll():
            if self._must_abandon.wait(pause_s):
                write.abandon()
                raise LibraryError(self._loss or "given up by this side")
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if time.monotonic() > give_up_s and not self._loss:
                self._lose(f"the owner took nothing for {self._stall_timeout_s:g} s")
                self._account.call_back()  # no ticket may have ended, but the peer has

    def _lose(self, loss: str) -> None:
        with self._condition:
            self._loss = self._loss or loss
            queued, self._queue = self._queue, deque()
            self._condition.notify_all()
        for ticket in queued:
            ticket.settle(TicketState.FAILED, self._describe(loss))

    def _must_stop(self, ticket: WriteTicket) -> bool:
        return bool(self._loss) or ticket.is_cancel_requested or self._is_closed

    def _describe(self, reason: str) -> str:
        return f"write to {self.name}: {reason}"
