"""The writer's side of one peer behind a transfer library: one thread that posts, asks and settles.

A batch that was posted cannot be called back. When the peer hangs or this side closes it, the
thread follows the batch to its end; until then its ticket stays PENDING, so that nobody reuses the
blocks at either end, and the owner sees this writer alive.

A window's writes all wait in the queue that its name hashes to; the queues take turns, a batch
each.

Invariant: a batch is posted only after all earlier ones have arrived, and nothing is posted after
the peer was closed or lost. Leaving with BYE means that every batch is known to have arrived.
Elsewhere: the library (library.py), the connection that shows the owner's end (companion.py).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from baton.transfer.config import queue_of
from baton.transfer.library import LibraryError, LibraryTarget, LibraryWrite, split_batches
from baton.transfer.protocol import Copy, Ticket, TicketState, find_bad_copy
from baton.transfer.ticket import WriteAccount, WriteTicket

_CLOSE_GRACE_S = 0.5
"""So long a close waits for the batch under way before it leaves the thread alone with it."""

_SHORTEST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 1e-3
_JOIN_TIMEOUT_S = 2.0


_CLOSED_HERE = "this side closed the peer"


@dataclass(eq=False)
class _Queue:
    """Writes that move one after the other. `current` has begun, `batches` are what is left of it.
    All but `batches` under the peer's lock."""

    waiting: deque[WriteTicket] = field(default_factory=deque)
    current: WriteTicket | None = None
    batches: Iterator[list[Copy]] = field(default_factory=lambda: iter(()))

    def begin_next(self) -> bool:
        if self.current is None and self.waiting:
            self.current = self.waiting.popleft()
            self.batches = split_batches(self.current.copies)
            self.current.start()
        return self.current is not None

    def take_all(self) -> list[WriteTicket]:
        taken = [*([self.current] if self.current else []), *self.waiting]
        self.current, self.waiting = None, deque()
        return taken


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
        num_queues: int,
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
        self._queues = [_Queue() for _ in range(num_queues)]
        self._next = 0  # whose turn it is
        self._attended: _Queue | None = None  # a batch of its current ticket may be under way
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
            error = error or self._loss or (_CLOSED_HERE if self._is_closed else "")
            if not error:
                self._queues[queue_of(window, len(self._queues))].waiting.append(ticket)
                self._condition.notify_all()
        if error:
            ticket.settle(TicketState.FAILED, self._describe(error))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, WriteTicket), "a ticket of another backend"
        ticket.is_cancel_requested = True
        queue = self._queues[queue_of(ticket.window, len(self._queues))]
        with self._condition:
            is_waiting = ticket in queue.waiting
            if is_waiting:
                queue.waiting.remove(ticket)
        if is_waiting:
            ticket.settle(TicketState.CANCELLED, "cancelled by this side")

    def fail(self, loss: str) -> None:
        """The owner is gone: fail what is queued, and have the thread fail what it writes."""
        self._must_abandon.set()
        self._lose(loss)

    def close(self) -> None:
        is_own_thread = threading.current_thread() is self._thread
        with self._condition:
            self._is_closed = True
            dropped = self._take_unattended()
            self._condition.notify_all()
            if not is_own_thread:
                self._condition.wait_for(lambda: self._has_ended, _CLOSE_GRACE_S)
        for ticket in dropped:
            self._settle(ticket)
        if not is_own_thread and self._has_ended:
            self._thread.join()

    def abandon(self) -> None:
        """After `close`: follow nothing any more."""
        self._must_abandon.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_TIMEOUT_S)
        with self._condition:
            current = self._attended.current if self._attended else None
        if current is not None:  # its thread is stuck in the library's handshake
            current.settle(TicketState.CANCELLED, self._describe(_CLOSED_HERE))

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
            while (queue := self._next_queue()) is not None:
                self._take_turn(queue, target)
        except LibraryError as error:
            self._is_clean = False
            self._lose(str(error))
        except Exception as error:
            self._is_clean = False
            self._lose(f"internal error: {error!r}")
            raise
        finally:
            with self._condition:
                self._attended = None
            self._settle_unattended()
            if target is not None:
                target.close(is_owner_lost=bool(self._loss))
            self._let_go(self, self._is_clean)
            with self._condition:
                self._has_ended = True
                self._condition.notify_all()

    def _next_queue(self) -> _Queue | None:
        """The one whose turn it is; None once there will be none."""
        with self._condition:
            self._attended = None
            while self.is_alive:
                for _ in self._queues:
                    queue = self._queues[self._next]
                    self._next = (self._next + 1) % len(self._queues)
                    if queue.begin_next():
                        self._attended = queue
                        return queue
                self._condition.wait()
            return None

    def _take_turn(self, queue: _Queue, target: LibraryTarget) -> None:
        """The next batch of its current ticket, or that ticket's end."""
        ticket = queue.current
        assert ticket is not None
        batch = None if self._must_stop(ticket) else next(queue.batches, None)
        if batch is not None:
            self._follow(target.post(batch))
            ticket.num_bytes_moved += sum(copy.num_bytes for copy in batch)
            return
        with self._condition:
            queue.current = None
        self._settle(ticket)

    def _settle(self, ticket: WriteTicket) -> None:
        """As it ended. Looked at once more after the last batch: what went to an owner that has
        died meanwhile has not arrived."""
        if self._loss:
            ticket.settle(TicketState.FAILED, self._describe(self._loss))
        elif self._must_stop(ticket):
            reason = _CLOSED_HERE if self._is_closed else "cancelled by this side"
            ticket.settle(TicketState.CANCELLED, reason)
        else:
            ticket.settle(TicketState.DONE)

    def _settle_unattended(self) -> None:
        with self._condition:
            dropped = self._take_unattended()
        for ticket in dropped:
            self._settle(ticket)

    def _take_unattended(self) -> list[WriteTicket]:
        """What has no batch under way; it is no longer in its queue."""
        idle = [queue for queue in self._queues if queue is not self._attended]
        taken = [ticket for queue in idle for ticket in queue.take_all()]
        if self._attended is not None:
            taken += self._attended.waiting
            self._attended.waiting = deque()
        return taken

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
            self._condition.notify_all()
        self._settle_unattended()

    def _must_stop(self, ticket: WriteTicket) -> bool:
        return bool(self._loss) or ticket.is_cancel_requested or self._is_closed

    def _describe(self, reason: str) -> str:
        return f"write to {self.name}: {reason}"
