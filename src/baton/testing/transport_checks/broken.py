"""Ways that break a network's promises: what a transport still keeps when writes are lost, stall,
are refused or arrive wrong, and when a peer dies or hangs.

A `FaultyRoute` with the same faults and the same order of writes plans the same, so that it is the
model of what must have arrived.
Elsewhere: the faults (testing/faulty.py), ways that keep the contract, over which every other check
runs as well (tests/conformance).
"""

import contextlib
from collections.abc import Iterator, Sequence

from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.storage import SharedSegment
from baton.testing.faulty import FaultConfig, FaultyRoute, faulty
from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    REGION_BYTES,
    WHOLE_REGION,
    WINDOW,
    MakeTransport,
    Side,
    apply,
    block,
    close_together,
    expect,
    scattered,
    when_the_writers_are_gone_nothing_changes,
)
from baton.transfer.protocol import Copy, Ticket, TicketState
from baton.transfer.routed import RoutedTransport
from baton.transfer.routed_peer import Ending, Passage

NUM_WRITES = 64
BLOCKS_OF_A_WRITE = NUM_BLOCKS // NUM_WRITES


def check_a_way_that_loses(make: MakeTransport) -> None:
    """Half of each write arrives, no more, and none is told to be done."""
    with _pair(make, FaultConfig(seed=1, lose=1.0)) as (writer, owner):
        peer = writer.connect(owner)
        copies = scattered(1000, seed=2)
        ticket = writer.write(peer, WINDOW, copies)
        expect(ticket, TicketState.FAILED)
        expected = bytearray(REGION_BYTES)
        apply(copies[:500], writer.view, expected)
        assert owner.view == expected
        assert peer.is_alive, "a lost write is not a lost peer"
        stats = writer.transport.stats()
        assert (stats.num_writes, stats.num_bytes, stats.num_failures) == (0, 0, 1)
        _nothing_comes_after(make, writer, owner)


def check_a_way_that_corrupts(make: MakeTransport) -> None:
    """A write that arrives wrong is told to be done: only checksums find it, and they find it
    each time, in the very block."""
    faults = FaultConfig(seed=3, corrupt=0.5)
    with _pair(make, faults) as (writer, owner):
        sent, got = (BlockChecksums(side.view, BLOCK_BYTES) for side in (writer, owner))
        peer = writer.connect(owner)
        writes = [_own_blocks(number) for number in range(NUM_WRITES)]
        tickets = [peer.post_write(WINDOW, copies) for copies in writes]
        writer.wait(*tickets)
        for ticket in tickets:
            expect(ticket, TicketState.DONE)
        expected = bytearray(REGION_BYTES)
        for passage in _plan(faults, writer, writes):
            _arrive(passage, writer, expected)
        assert owner.view == expected
        damaged = [b for b in range(NUM_BLOCKS) if sent.of(b) != got.of(b)]
        differing = [b for b in range(NUM_BLOCKS) if _bytes_of(owner, b) != _bytes_of(writer, b)]
        assert damaged == differing
        assert len({b // BLOCKS_OF_A_WRITE for b in damaged}) == len(damaged) > NUM_WRITES // 4
        _nothing_comes_after(make, writer, owner)


def check_a_way_that_refuses(make: MakeTransport) -> None:
    with _pair(make, FaultConfig(seed=1, refuse=1.0)) as (writer, owner):
        peer = writer.connect(owner)
        for number in range(3):
            expect(writer.write(peer, WINDOW, _own_blocks(number)), TicketState.FAILED)
        assert owner.view == bytes(REGION_BYTES)
        assert writer.transport.stats().num_failures == 3
        assert peer.is_alive
        _nothing_comes_after(make, writer, owner)


def check_a_way_with_every_fault(make: MakeTransport) -> None:
    """Each write ends as the model says, and the bytes are the model's, later writes on top."""
    faults = FaultConfig(
        seed=7, lose=0.2, refuse=0.2, duplicate=0.2, corrupt=0.1, overtake=0.1, hold_s=0.001
    )
    with _pair(make, faults) as (writer, owner):
        peer = writer.connect(owner)
        writes = [scattered(50, seed=seed) for seed in range(NUM_WRITES)]
        tickets = [peer.post_write(WINDOW, copies) for copies in writes]
        writer.wait(*tickets)
        expected = bytearray(REGION_BYTES)
        for ticket, passage in zip(tickets, _plan(faults, writer, writes), strict=True):
            fails = passage.ending is Ending.FAILS
            expect(ticket, TicketState.FAILED if fails else TicketState.DONE)
            _arrive(passage, writer, expected)
        assert owner.view == expected
        assert len({ticket.state for ticket in tickets}) == 2
        _nothing_comes_after(make, writer, owner)


def check_a_way_that_stalls(make: MakeTransport) -> None:
    """What is stuck holds up its own window only, can be cancelled, and ends with its peer."""
    faults = FaultConfig(seed=4, stall=0.3)
    windows = [f"{WINDOW}-{number}" for number in range(NUM_WRITES)]
    with _pair(make, faults) as (writer, owner):
        peer = writer.connect(owner)
        writes = [_own_blocks(number) for number in range(NUM_WRITES)]
        for window in windows:
            owner.transport.open_window(window, WHOLE_REGION)
        tickets = [peer.post_write(w, c) for w, c in zip(windows, writes, strict=True)]
        passages = _plan(faults, writer, writes)
        stuck = [t for t, passage in zip(tickets, passages, strict=True) if not passage.writes]
        others = [ticket for ticket in tickets if ticket not in stuck]
        writer.wait(*others)
        for ticket in others:
            expect(ticket, TicketState.DONE)
        assert len(stuck) > 4
        for ticket in stuck:
            expect(ticket, TicketState.PENDING)
        peer.cancel(stuck[0])
        writer.wait(stuck[0])
        assert all(ticket.state is TicketState.PENDING for ticket in stuck[1:])
        peer.close()
        for ticket in stuck:
            expect(ticket, TicketState.CANCELLED)
        expected = bytearray(REGION_BYTES)
        for passage in passages:
            _arrive(passage, writer, expected)
        assert owner.view == expected
        _nothing_comes_after(make, writer, owner)


def check_a_peer_that_dies(make: MakeTransport) -> None:
    """In the middle of many writes. All that had not arrived fails, and so does all that is posted
    later; once the owner has seen the writer go, nothing changes, and the next peer works."""
    with _pair(make, FaultConfig(die_at=10)) as (writer, owner):
        peer = writer.connect(owner)
        whole = [block(0, 0, NUM_BLOCKS)]
        tickets = [peer.post_write(WINDOW, whole) for _ in range(20)]
        writer.wait(*tickets)
        assert all(t.state in (TicketState.DONE, TicketState.FAILED) for t in tickets)
        for ticket in tickets[9:]:
            expect(ticket, TicketState.FAILED)
        assert not peer.is_alive
        expect(writer.write(peer, WINDOW, whole), TicketState.FAILED)
        again = writer.connect(owner)
        expect(writer.write(again, WINDOW, whole), TicketState.DONE)
        assert owner.view == writer.view
        _nothing_comes_after(make, writer, owner)


def check_a_peer_that_hangs(make: MakeTransport) -> None:
    """It is alive for all that can be seen; not even a cancel ends its writes, but its close does,
    and none of their bytes arrives."""
    with _pair(make, FaultConfig(hang_at=3)) as (writer, owner):
        peer = writer.connect(owner)
        for number in range(2):
            expect(writer.write(peer, WINDOW, _own_blocks(number)), TicketState.DONE)
        before = bytes(owner.view)
        hung = [peer.post_write(WINDOW, _own_blocks(number)) for number in range(2, 8)]
        for ticket in hung[3:]:
            peer.cancel(ticket)
        assert peer.is_alive
        assert owner.transport.live_writers() == {writer.transport.writer_id}
        assert all(ticket.state is TicketState.PENDING for ticket in hung)
        peer.close()
        for ticket in hung:
            expect(ticket, TicketState.CANCELLED)
        assert not peer.is_alive
        assert owner.view == before
        _nothing_comes_after(make, writer, owner)


def check_closing_while_writes_are_held_back(make: MakeTransport) -> None:
    """Held back on the way while its window, its peer or its whole transport is closed, a write
    does not arrive after all."""
    faults = FaultConfig(overtake=1.0, hold_s=0.05)
    with _pair(make, faults) as (writer, owner):
        peer = writer.connect(owner)
        tickets: list[Ticket] = []
        if owner.transport.can_fence:
            tickets.append(peer.post_write(WINDOW, _own_blocks(0)))
            owner.transport.close_window(WINDOW)
            writer.wait(*tickets)
            expect(tickets[0], TicketState.FAILED)
        owner.transport.open_window("second", WHOLE_REGION)
        held = peer.post_write("second", _own_blocks(1))
        peer.close()
        expect(held, TicketState.CANCELLED)
        again = writer.connect(owner)
        expect(writer.write(again, "second", _own_blocks(2)), TicketState.DONE)
        last = again.post_write("second", _own_blocks(3))
        writer.transport.close()
        expect(last, TicketState.CANCELLED)
        expected = bytearray(REGION_BYTES)
        apply(_own_blocks(2), writer.view, expected)
        assert owner.view == expected
        _nothing_comes_after(make, writer, owner)


@contextlib.contextmanager
def _pair(make: MakeTransport, faults: FaultConfig) -> Iterator[tuple[Side, Side]]:
    """As `pair`, with the faults on the writer's way."""

    def make_faulty(segment: SharedSegment) -> RoutedTransport:
        return faulty(make(segment), faults, segment.view())

    writer, owner = Side(make_faulty, fill=7), Side(make)
    owner.transport.open_window(WINDOW, WHOLE_REGION)
    try:
        yield writer, owner
    finally:
        close_together(writer, owner)


def _plan(faults: FaultConfig, writer: Side, writes: Sequence[Sequence[Copy]]) -> list[Passage]:
    model = FaultyRoute(faults, writer.view)
    return [model.plan(WINDOW, copies, 0.0) for copies in writes]


def _arrive(passage: Passage, writer: Side, target: bytearray) -> None:
    for copies in passage.writes:
        apply(copies, writer.view, target)


def _own_blocks(number: int) -> list[Copy]:
    """Of one write, all of them elsewhere than where they come from."""
    first = number * BLOCKS_OF_A_WRITE
    return [block(first + index, first + index) for index in range(BLOCKS_OF_A_WRITE)]


def _bytes_of(side: Side, number: int) -> bytes:
    return bytes(side.view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])


def _nothing_comes_after(make: MakeTransport, writer: Side, owner: Side) -> None:
    """The writer lets go; when the owner has seen that, it has its bytes for itself."""
    writer.transport.close()
    owner.transport.close_window(WINDOW)
    when_the_writers_are_gone_nothing_changes(make, owner)
