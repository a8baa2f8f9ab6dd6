"""A storm of operations, drawn from a seed, against a model that knows every byte.

Two writers with several connections each open windows of their own on one owner, post, cancel,
leave, restart; the owner ends windows as the contract lets it: at once where that is a fence, else
once nothing is pending. Then it writes over those blocks itself, and whatever changes them comes
too late.

Invariant: a block belongs to the owner, or to one window; what is written to a window goes over one
connection, in posting order.
Elsewhere: what a window's bytes may be (window_bytes.py).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    MakeTransport,
    Side,
    close_together,
    wait_until,
)
from baton.testing.transport_checks.window_bytes import WindowBytes
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState

NUM_BLOCKS = 512
REGION_BYTES = NUM_BLOCKS * BLOCK_BYTES
NUM_WRITERS = 2
MAX_PEERS = 6
MAX_RUN = 48
LONG_SHARE = 0.05
NUM_TIMES_OF_LONG = 16

DONE, FAILED, CANCELLED = TicketState.DONE, TicketState.FAILED, TicketState.CANCELLED


def check_a_storm(make: MakeTransport, seed: int, num_operations: int) -> None:
    storm = _Storm(make, seed)
    try:
        for _ in range(num_operations):
            storm.do_something()
        storm.end()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, operation {storm.num_done}: {error}") from error
    finally:
        storm.close()


@dataclass(eq=False)
class _Posted:
    ticket: Ticket
    copies: list[Copy]
    may_end: set[TicketState]


@dataclass(eq=False)
class _Window:
    name: str
    ranges: list[tuple[int, int]]
    writer: Side
    peer: Peer
    bytes_: WindowBytes
    posted: list[_Posted] = field(default_factory=list)  # since its bytes were looked at last

    def allow(self, state: TicketState) -> None:
        """All that is not at its end may now end so, too."""
        for posted in self.posted:
            if posted.ticket.state is TicketState.PENDING:
                posted.may_end.add(state)

    def settle(self) -> None:
        self.writer.wait(*(posted.ticket for posted in self.posted))

    def compare(self, view: memoryview) -> None:
        """Nothing is pending: every write ended as it may, and the bytes are what that means."""
        for posted in self.posted:
            state = posted.ticket.state
            assert state in posted.may_end, f"{self.name}: {state}: {posted.ticket.error}"
            assert bool(posted.ticket.error) or state is not FAILED, "a failure must say why"
            if state is DONE:
                self.bytes_.arrived(posted.copies)
            else:
                self.bytes_.may_have_arrived(posted.copies)
        wrong = self.bytes_.first_wrong(view)
        assert wrong is None, f"{self.name}: byte {wrong} is none that was sent there"


@dataclass(eq=False)
class _Account:
    """What a writer's transport must have counted."""

    posted: list[_Posted] = field(default_factory=list)

    def compare(self, writer: Side) -> None:
        stats = writer.transport.stats()
        done = [each for each in self.posted if each.ticket.state is DONE]
        num_failed = sum(each.ticket.state is FAILED for each in self.posted)
        num_bytes = sum(copy.num_bytes for each in done for copy in each.copies)
        wanted = (len(done), num_bytes, num_failed)
        assert (stats.num_writes, stats.num_bytes, stats.num_failures) == wanted, stats


class _Storm:
    def __init__(self, make: MakeTransport, seed: int):
        self.num_done = 0
        self._make = make
        self._rng = random.Random(seed)
        self._owner = Side(make, REGION_BYTES)
        self._can_fence = self._owner.transport.can_fence
        self._ground = bytearray(REGION_BYTES)  # what the owner's own blocks hold
        self._free = set(range(NUM_BLOCKS))
        self._writers = [Side(make, REGION_BYTES, fill=index) for index in range(NUM_WRITERS)]
        self._accounts = {writer: _Account() for writer in self._writers}
        self._peers: list[tuple[Side, Peer]] = []
        self._windows: list[_Window] = []
        self._fenced: list[tuple[_Window, bytes]] = []  # each with the region as it was then
        self._num_windows = 0
        weights: dict[Callable[[], None], int] = {
            self._open: 20,
            self._post: 40,
            self._post_too_far: 3,
            self._post_elsewhere: 3,
            self._cancel: 12,
            self._compare: 12,
            self._end_a_window: 12,
            self._connect: 6,
            self._leave: 4,
            self._restart: 1,
        }
        self._operations, self._weights = list(weights), list(weights.values())

    def do_something(self) -> None:
        self.num_done += 1
        self._rng.choices(self._operations, self._weights)[0]()

    def end(self) -> None:
        for writer in list(self._writers):
            self._end_writer(writer)
        live_writers = self._owner.transport.live_writers
        wait_until(lambda: not live_writers(), "the writers leaving")
        self._compare_fenced()
        assert len(self._free) == NUM_BLOCKS
        assert self._owner.view == self._ground, "a closed window has changed"

    def close(self) -> None:
        close_together(*self._writers, self._owner)

    def _open(self) -> None:
        if not self._peers or len(self._free) < MAX_RUN:
            return
        rng = self._rng
        writer, peer = rng.choice(self._peers)
        ranges = [self._take_run() for _ in range(rng.randint(1, 3)) if self._free]
        for start, end in ranges:
            assert self._owner.view[start:end] == self._ground[start:end], "it came too late"
        self._num_windows += 1
        name = f"storm-{self._num_windows}"
        self._owner.transport.open_window(name, ranges)
        known = WindowBytes(ranges, writer.view, self._owner.view)
        self._windows.append(_Window(name, ranges, writer, peer, known))

    def _take_run(self) -> tuple[int, int]:
        """Neighbours that are free."""
        first = last = self._rng.choice(sorted(self._free))
        length = self._rng.randint(1, MAX_RUN)
        while last + 1 in self._free and last + 1 - first < length:
            last += 1
        self._free -= set(range(first, last + 1))
        return first * BLOCK_BYTES, (last + 1) * BLOCK_BYTES

    def _post(self) -> None:
        for window in self._some_window():
            for _ in range(self._rng.randint(1, 8)):
                is_long = self._rng.random() < LONG_SHARE
                copies = self._long(window) if is_long else self._copies_into(window)
                self._post_to(window, window.name, copies, {DONE})

    def _post_too_far(self) -> None:
        for window in self._some_window():
            bad = Copy(0, REGION_BYTES - 10, 11)
            self._post_to(window, window.name, [self._copy_into(window), bad], {FAILED})

    def _post_elsewhere(self) -> None:
        """To a window that there is not, or beyond its ranges: a fence lets nothing through."""
        for window in self._some_window():
            if self._can_fence:
                end = max(end for _, end in window.ranges)
                good = self._copy_into(window)
                self._post_to(window, "never opened", [good], {FAILED})
                if end < REGION_BYTES:
                    self._post_to(window, window.name, [Copy(0, end - 1, 2)], {FAILED})

    def _post_to(
        self, window: _Window, name: str, copies: list[Copy], may_end: set[TicketState]
    ) -> None:
        ticket = window.peer.post_write(name, copies)
        # What must fail moves no byte.
        posted = _Posted(ticket, copies if DONE in may_end else [], may_end)
        window.posted.append(posted)
        self._accounts[window.writer].posted.append(posted)

    def _copy_into(self, window: _Window) -> Copy:
        start, end = self._rng.choice(window.ranges)
        low, high = sorted((self._rng.randint(start, end), self._rng.randint(start, end)))
        return self._copy(low, high)

    def _copies_into(self, window: _Window) -> list[Copy]:
        """Apart from each other, in any order."""
        start, end = self._rng.choice(window.ranges)
        cuts = sorted(self._rng.randint(start, end) for _ in range(2 * self._rng.randint(0, 12)))
        pieces = list(zip(cuts[::2], cuts[1::2], strict=True))
        self._rng.shuffle(pieces)
        return [self._copy(low, high) for low, high in pieces]

    def _long(self, window: _Window) -> list[Copy]:
        """Long under way, so that much can happen meanwhile: the same again and again."""
        return [self._copy(start, end) for start, end in window.ranges] * NUM_TIMES_OF_LONG

    def _copy(self, low: int, high: int) -> Copy:
        return Copy(self._rng.randint(0, REGION_BYTES - (high - low)), low, high - low)

    def _cancel(self) -> None:
        for window in self._some_window():
            for posted in self._rng.choices(window.posted, k=3) if window.posted else []:
                if posted.ticket.state is TicketState.PENDING:
                    posted.may_end.add(CANCELLED)
                window.peer.cancel(posted.ticket)

    def _compare(self) -> None:
        for window in self._some_window():
            window.settle()
            window.compare(self._owner.view)
            window.posted.clear()
            window.bytes_ = WindowBytes(window.ranges, window.writer.view, self._owner.view)

    def _end_a_window(self) -> None:
        for window in self._some_window():
            self._end_window(window)

    def _end_window(self, window: _Window) -> None:
        self._windows.remove(window)
        if self._can_fence:
            window.allow(FAILED)
            self._owner.transport.close_window(window.name)
            self._fenced.append((window, bytes(self._owner.view)))
        else:
            window.allow(CANCELLED)
            for posted in reversed(window.posted):
                window.peer.cancel(posted.ticket)
            window.settle()
            window.compare(self._owner.view)
            self._owner.transport.close_window(window.name)
        for start, end in window.ranges:
            self._ground[start:end] = self._rng.randbytes(end - start)
            self._owner.view[start:end] = self._ground[start:end]
            self._free |= set(range(start // BLOCK_BYTES, end // BLOCK_BYTES))
        if len(self._fenced) >= 8:
            self._compare_fenced()

    def _compare_fenced(self) -> None:
        for window, region in self._fenced:
            window.settle()
            window.compare(memoryview(region))
        self._fenced.clear()

    def _connect(self) -> None:
        if len(self._peers) < MAX_PEERS:
            writer = self._rng.choice(self._writers)
            self._peers.append((writer, writer.connect(self._owner)))

    def _leave(self) -> None:
        if self._peers:
            self._leave_peer(*self._rng.choice(self._peers))

    def _leave_peer(self, writer: Side, peer: Peer) -> None:
        self._peers.remove((writer, peer))
        self._allow_all_of(peer, CANCELLED)
        peer.close()
        assert not peer.is_alive
        if writer.transport.can_recall:
            self._expect_nothing_pending_of(peer)
        self._end_windows_of(peer)

    def _restart(self) -> None:
        self._end_writer(self._rng.choice(self._writers))
        self._writers.append(Side(self._make, REGION_BYTES, fill=self._rng.randrange(1000)))
        self._accounts[self._writers[-1]] = _Account()

    def _end_writer(self, writer: Side) -> None:
        """Its whole transport is closed: nothing of it may be pending, whatever it can recall."""
        left = [peer for its_writer, peer in self._peers if its_writer is writer]
        self._peers = [(w, peer) for w, peer in self._peers if w is not writer]
        for peer in left:
            self._allow_all_of(peer, CANCELLED)
        writer.transport.close()
        for peer in left:
            assert not peer.is_alive
            self._expect_nothing_pending_of(peer)
            self._end_windows_of(peer)
        self._compare_fenced()
        self._accounts.pop(writer).compare(writer)
        self._writers.remove(writer)
        writer.close()

    def _of(self, peer: Peer) -> list[_Window]:
        return [window for window in self._windows if window.peer is peer]

    def _end_windows_of(self, peer: Peer) -> None:
        for window in self._of(peer):
            self._end_window(window)

    def _allow_all_of(self, peer: Peer, state: TicketState) -> None:
        for window in [*self._windows, *(window for window, _ in self._fenced)]:
            if window.peer is peer:
                window.allow(state)

    def _expect_nothing_pending_of(self, peer: Peer) -> None:
        states = [posted.ticket.state for window in self._of(peer) for posted in window.posted]
        assert TicketState.PENDING not in states, "pending after it was closed"

    def _some_window(self) -> list[_Window]:
        """One, or none if there is none."""
        return [self._rng.choice(self._windows)] if self._windows else []
