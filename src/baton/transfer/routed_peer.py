"""The writer's side of one peer whose writes are held back: each goes to the real peer when due.

Invariants: writes of one window reach the real peer in posting order, and a ticket is DONE only
after all that went before it in its window; a ticket leaves PENDING only when the real peer has
nothing pending for it. The real peer is called on the loop's thread only, without holding a lock.
Elsewhere: what becomes of a write (link.py), the transport around it (routed.py).
"""

import enum
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.core.clock import Clock
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState
from baton.transfer.ticket import WriteAccount, WriteTicket


class Ending(enum.Enum):
    """How a write ends on its route. A simulated link knows the first two; a peer that dies fails
    all its tickets, and one that hangs settles none, not even cancelled ones, before `close`."""

    ARRIVES = "arrives"
    FAILS = "fails"
    PEER_DIES = "peer dies"
    PEER_HANGS = "peer hangs"


@dataclass(frozen=True)
class Passage:
    """What becomes of one posted write: from `due_s` on `writes` go to the real peer, one after
    the other, and then it ends. `start_s`: when its first byte leaves; both as the clock has it,
    `due_s` infinite for never. `error` says why it does not arrive."""

    start_s: float
    due_s: float
    writes: tuple[tuple[Copy, ...], ...]
    ending: Ending = Ending.ARRIVES
    error: str = ""


class Route(Protocol):
    """Decides what becomes of writes; called in posting order, from any thread."""

    def plan(self, window: str, copies: Sequence[Copy], now_s: float) -> Passage: ...


class CallLoop(Protocol):
    """A thread that runs calls, now or later (`IoLoop`)."""

    def submit(self, call: Callable[[], None]) -> bool: ...

    def run(self, call: Callable[[], None]) -> None: ...

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """On the loop's thread only."""
        ...

    def stop(self) -> None: ...


@dataclass(eq=False)
class _Write:
    ticket: WriteTicket
    passage: Passage
    posted_s: float
    posted: list[Ticket] = field(default_factory=list)

    @property
    def is_pending(self) -> bool:
        return any(ticket.state is TicketState.PENDING for ticket in self.posted)

    def progress(self, now_s: float) -> int:
        """Bytes' worth of the way on the route, the wait for its turn included, and what the real
        peer has moved. One that is never due gets nowhere."""
        way_s = self.passage.due_s - self.posted_s
        share = min(1.0, (now_s - self.posted_s) / way_s) if way_s > 0 else 1.0
        # In millionths, so that a small write over a slow route is seen to move, too.
        return int(share * 1e6) + sum(ticket.progress for ticket in self.posted)

    def outcome(self) -> tuple[TicketState, str]:
        """Once nothing is pending: the first that was not DONE, else what the passage says."""
        for ticket in self.posted:
            if ticket.state is not TicketState.DONE:
                return ticket.state, ticket.error
        if self.passage.ending is Ending.FAILS:
            return TicketState.FAILED, self.passage.error
        return TicketState.DONE, ""


class RoutedPeer:
    """A `Peer` in front of `inner`. `on_closed(peer)` is called once."""

    def __init__(
        self,
        inner: Peer,
        route: Route,
        account: WriteAccount,
        clock: Clock,
        loop: CallLoop,
        on_closed: Callable[["RoutedPeer"], None],
    ):
        self._inner = inner
        self._route = route
        self._account = account
        self._clock = clock
        self._loop = loop
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._loss = ""
        self._held: list[_Write] = []  # in posting order
        # The rest belongs to the loop's thread.
        self._under_way: list[_Write] = []  # in the order they went to the real peer
        self._armed_s = math.inf

    @property
    def is_alive(self) -> bool:
        return not self._loss and self._inner.is_alive

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        ticket = self._account.new_ticket(window, copies)
        with self._lock:
            loss = self._loss
            if not loss:
                now_s = self._clock.now_s()
                write = _Write(ticket, self._route.plan(window, copies, now_s), now_s)
                ticket.measure = lambda: write.progress(self._clock.now_s())
                self._held.append(write)
        if loss:
            ticket.settle(TicketState.FAILED, loss)
        else:
            self._loop.submit(self.pump)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, WriteTicket), "a ticket of another backend"
        ticket.is_cancel_requested = True
        self._loop.submit(self._cancel_requested)

    def close(self) -> None:
        self._loop.run(lambda: self._end(TicketState.CANCELLED, "this side closed the peer"))

    def pump(self) -> None:
        """Pass on what is due and settle what has ended; on the loop's thread."""
        if self._loss:
            self._settle_recalled()
            return
        if not self._inner.is_alive:
            self._end(TicketState.FAILED, "the peer is gone")
            return
        now_s = self._clock.now_s()
        due = self._take_due(now_s)
        for number, write in enumerate(due):
            if write.passage.ending is Ending.PEER_DIES:
                self._end(TicketState.FAILED, write.passage.error, due[number:])
                return
            write.ticket.start(now_s - write.passage.start_s)
            write.posted = [
                self._inner.post_write(write.ticket.window, copies)
                for copies in write.passage.writes
            ]
            self._under_way.append(write)
        self._settle_ended()
        self._arm(now_s)

    def _take_due(self, now_s: float) -> list[_Write]:
        with self._lock:
            due: list[_Write] = []
            kept: list[_Write] = []
            held_windows: set[str] = set()
            for write in self._held:
                window = write.ticket.window
                if write.passage.due_s <= now_s and window not in held_windows:
                    due.append(write)
                else:
                    held_windows.add(window)
                    kept.append(write)
            self._held = kept
        return due

    def _settle_ended(self) -> None:
        pending_windows: set[str] = set()
        for write in list(self._under_way):
            window = write.ticket.window
            if write.is_pending:
                pending_windows.add(window)
                continue
            state, error = write.outcome()
            if state is TicketState.DONE and window in pending_windows:
                continue  # those before it are about to end: the real peer keeps the order, too
            self._under_way.remove(write)
            write.ticket.settle(state, error)

    def _arm(self, now_s: float) -> None:
        """Have `pump` called when the next write is due."""
        if self._armed_s <= now_s:
            self._armed_s = math.inf
        with self._lock:
            later = [write.passage.due_s for write in self._held if write.passage.due_s > now_s]
        # Those that are due already wait for one before them in their window.
        due_s = min(later, default=math.inf)
        if due_s < self._armed_s:
            self._armed_s = due_s
            self._loop.call_later(due_s - now_s, self.pump)

    def _cancel_requested(self) -> None:
        with self._lock:
            dropped = [
                write
                for write in self._held
                if write.ticket.is_cancel_requested
                and write.passage.ending is not Ending.PEER_HANGS
            ]
            self._held = [write for write in self._held if write not in dropped]
        for write in dropped:
            write.ticket.settle(TicketState.CANCELLED, "cancelled by this side")
        for write in self._under_way:
            if write.ticket.is_cancel_requested:
                for ticket in write.posted:
                    self._inner.cancel(ticket)
        self.pump()

    def _end(self, state: TicketState, reason: str, due: Sequence[_Write] = ()) -> None:
        """Let go of the real peer, then settle everything, also `due`, which was not passed on."""
        with self._lock:
            if self._loss:
                return
            self._loss = reason
            held, self._held = self._held, []
        self._inner.close()
        under_way, self._under_way = self._under_way, []
        for write in under_way:
            if write.is_pending:
                self._under_way.append(write)
                continue
            own_state, error = write.outcome()
            if own_state is TicketState.CANCELLED:  # by closing, just now
                own_state, error = state, reason
            write.ticket.settle(own_state, error)
        for write in [*due, *held]:
            write.ticket.settle(state, reason)
        if not self._under_way:
            self._on_closed(self)

    def _settle_recalled(self) -> None:
        """After the end: a write that the real peer could not recall has ended at last."""
        had_some = bool(self._under_way)
        self._settle_ended()
        if had_some and not self._under_way:
            self._on_closed(self)
