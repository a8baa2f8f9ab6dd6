"""Whatever is written arrives exactly, and what cannot be written moves no byte.

Elsewhere: who may write, and until when (windows.py).
"""

import threading

from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    REGION_BYTES,
    WINDOW,
    MakeTransport,
    Side,
    apply,
    block,
    close_together,
    expect,
    pair,
    scattered,
)
from baton.transfer.protocol import Copy, Peer, Ticket, TicketState


def check_exact_bytes_of_odd_ranges(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        copies = [Copy(1, 5, 1), Copy(100, 17, 4095), Copy(70001, 9999, 3_000_001), Copy(7, 8, 0)]
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(writer.connect(owner), WINDOW, copies), TicketState.DONE)
        assert owner.view == expected


def check_empty_write_is_done(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, []), TicketState.DONE)
        expect(writer.write(peer, WINDOW, [Copy(0, 0, 0)]), TicketState.DONE)
        assert owner.view == bytes(REGION_BYTES)


def check_one_block(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        expect(writer.write(writer.connect(owner), WINDOW, [block(3, 9)]), TicketState.DONE)
        expected = bytearray(REGION_BYTES)
        apply([block(3, 9)], writer.view, expected)
        assert owner.view == expected


def check_thousands_of_scattered_blocks(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        copies = scattered(3000, seed=1)
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(writer.connect(owner), WINDOW, copies), TicketState.DONE)
        assert owner.view == expected


def check_the_whole_region_at_once(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, [block(0, 0, NUM_BLOCKS)]), TicketState.DONE)
        assert owner.view == writer.view


def check_later_writes_win(make: MakeTransport) -> None:
    """Writes of one window land in posting order."""
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(source, 0, 64)]) for source in range(100)]
        writer.wait(*tickets)
        assert owner.view[: 64 * BLOCK_BYTES] == writer.view[99 * BLOCK_BYTES : 163 * BLOCK_BYTES]


def check_completion_in_posting_order(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        sizes = [512, 1, 256, 2, 128, 0, 64]
        tickets = [peer.post_write(WINDOW, [block(0, 0, size)]) for size in sizes]
        for index, ticket in enumerate(tickets):
            writer.wait(ticket)
            assert all(earlier.state is TicketState.DONE for earlier in tickets[:index])


def check_concurrent_threads_and_peers(make: MakeTransport) -> None:
    """Several writers to one owner, each from several threads, each into its own window."""
    owner = Side(make)
    writers = [Side(make, fill=seed) for seed in range(3)]
    share = NUM_BLOCKS // 6
    expected = bytearray(REGION_BYTES)
    tickets: list[tuple[Side, Ticket]] = []
    threads = []
    for number in range(6):
        writer, first = writers[number // 2], number * share
        peer = writer.connect(owner)
        start, end = first * BLOCK_BYTES, (first + share) * BLOCK_BYTES
        owner.transport.open_window(f"window-{number}", [(start, end)])
        copies = [block(share - 1 - index, first + index) for index in range(share)]
        apply(copies, writer.view, expected)

        def post(
            writer: Side = writer,
            peer: Peer = peer,
            window: str = f"window-{number}",
            copies: list[Copy] = copies,
        ) -> None:
            for index in range(0, share, 50):
                tickets.append((writer, peer.post_write(window, copies[index : index + 50])))

        threads.append(threading.Thread(target=post))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer, ticket in tickets:
        writer.wait(ticket)
        expect(ticket, TicketState.DONE)
    assert owner.view == expected
    close_together(*writers, owner)


def check_both_directions(make: MakeTransport) -> None:
    with pair(make) as (first, second):
        first.transport.open_window("back", [(0, BLOCK_BYTES)])
        forth = first.connect(second).post_write(WINDOW, [block(5, 1)])
        first.wait(forth)
        expect(second.write(second.connect(first), "back", [block(1, 0)]), TicketState.DONE)
        assert first.view[:BLOCK_BYTES] == first.view[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]


def check_outside_of_the_regions_is_refused(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        bad_copies = [
            Copy(0, REGION_BYTES - 10, 11),
            Copy(REGION_BYTES - 10, 0, 11),
            Copy(0, -1, 10),
            Copy(-1, 0, 10),
            Copy(0, 0, -1),
            Copy(0, 1 << 62, 1),
        ]
        for bad in bad_copies:
            expect(writer.write(peer, WINDOW, [block(0, 0), bad]), TicketState.FAILED)
        assert owner.view == bytes(REGION_BYTES)
        assert writer.transport.stats().num_failures == len(bad_copies)
        expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)
