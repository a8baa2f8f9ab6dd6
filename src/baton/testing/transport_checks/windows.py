"""Windows, fences, cancels, and both ends letting go: what may still change, and what is left.

Elsewhere: the same with processes that die or hang (processes.py).
"""

import contextlib
import os
import threading

import msgspec

from baton.core.errors import TransferError
from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    DEADLINE_S,
    NUM_BLOCKS,
    REGION_BYTES,
    SOON_S,
    WHOLE_REGION,
    WINDOW,
    MakeTransport,
    Side,
    block,
    expect,
    expect_no_connection,
    pair,
    wait_until,
)
from baton.transfer.protocol import Copy, TicketState


def check_bad_windows_are_refused(make: MakeTransport) -> None:
    with pair(make) as (_, owner):
        for window, ranges in (
            ("beyond", [(0, REGION_BYTES + 1)]),
            ("negative", [(-1, 10)]),
            ("backwards", [(10, 9)]),
            (WINDOW, [(0, 1)]),
        ):
            with contextlib.suppress(ValueError):
                owner.transport.open_window(window, ranges)
                raise AssertionError(f"window {window} {ranges} was accepted")
        owner.transport.close_window(WINDOW)
        owner.transport.close_window(WINDOW)
        owner.transport.close_window("never opened")


def check_only_open_windows_are_written(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        if not owner.transport.can_fence:
            return
        peer = writer.connect(owner)
        half = REGION_BYTES // 2
        owner.transport.close_window(WINDOW)
        owner.transport.open_window("two parts", [(half, REGION_BYTES), (0, BLOCK_BYTES)])
        late = writer.write(peer, WINDOW, [block(0, 0)])
        unknown = writer.write(peer, "unknown", [block(0, 0)])
        across = writer.write(peer, "two parts", [Copy(0, half - 1, 2)])
        for ticket in (late, unknown, across):
            expect(ticket, TicketState.FAILED)
        assert owner.view == bytes(REGION_BYTES)
        inside = writer.write(peer, "two parts", [block(1, 0), Copy(0, half, half)])
        expect(inside, TicketState.DONE)
        assert owner.view[:BLOCK_BYTES] == writer.view[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert owner.view[half:] == writer.view[:half]


def check_a_closed_window_is_a_fence(make: MakeTransport) -> None:
    """While the writer keeps sending, nothing of the window changes after it was closed."""
    with pair(make) as (writer, owner):
        if not owner.transport.can_fence:
            return
        peer = writer.connect(owner)
        for number in range(20):
            window = f"fenced-{number}"
            owner.transport.open_window(window, WHOLE_REGION)
            owner.view[:1] = b"\0"
            tickets = [peer.post_write(window, [block(0, 0, NUM_BLOCKS)]) for _ in range(3)]
            wait_until(lambda: owner.view[0] == writer.view[0], "the first byte")
            owner.transport.close_window(window)
            owner.view[:] = bytes(REGION_BYTES)
            writer.wait(*tickets)
            assert owner.view == bytes(REGION_BYTES)
            expect(tickets[-1], TicketState.FAILED)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)


def check_cancel(make: MakeTransport) -> None:
    """After a cancelled ticket is settled, nothing more of it arrives; the peer goes on working."""
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        for _ in range(10):
            tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(4)]
            for ticket in reversed(tickets):
                peer.cancel(ticket)
            writer.wait(*tickets)
            owner.view[:] = bytes(REGION_BYTES)
            assert all(t.state in (TicketState.CANCELLED, TicketState.DONE) for t in tickets)
            expect(tickets[-1], TicketState.CANCELLED)
            assert owner.view == bytes(REGION_BYTES)
            expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)
        done = writer.write(peer, WINDOW, [block(0, 0)])
        peer.cancel(done)
        peer.cancel(done)
        expect(done, TicketState.DONE)


def check_cancel_before_it_began(make: MakeTransport) -> None:
    """Behind a long queue of its window: none of its bytes ever arrives."""
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        last = NUM_BLOCKS - 1
        ahead = [peer.post_write(WINDOW, [block(0, 0, last)]) for _ in range(20)]
        late = peer.post_write(WINDOW, [block(0, last)])
        peer.cancel(late)
        writer.wait(*ahead, late)
        expect(late, TicketState.CANCELLED)
        for ticket in ahead:
            expect(ticket, TicketState.DONE)
        assert owner.view[last * BLOCK_BYTES :] == bytes(BLOCK_BYTES)


def check_cancel_while_bytes_arrive(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        for _ in range(5):
            owner.view[:] = bytes(REGION_BYTES)
            ticket = peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)] * 8)
            wait_until(lambda: owner.view[0] == writer.view[0], "the first byte")
            peer.cancel(ticket)
            writer.wait(ticket)
            assert ticket.state in (TicketState.CANCELLED, TicketState.DONE), ticket.error
            owner.view[:] = bytes(REGION_BYTES)
            expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)
            assert owner.view[:BLOCK_BYTES] == bytes(BLOCK_BYTES)
            assert owner.view[2 * BLOCK_BYTES :] == bytes(REGION_BYTES - 2 * BLOCK_BYTES)


def check_cancel_after_it_is_done(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        done = writer.write(peer, WINDOW, [block(0, 0)])
        for _ in range(2):
            peer.cancel(done)
            expect(done, TicketState.DONE)
        peer.close()
        peer.cancel(done)
        expect(done, TicketState.DONE)
        assert owner.view[:BLOCK_BYTES] == writer.view[:BLOCK_BYTES]


def check_peer_close_settles_everything(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(20)]
        peer.close()
        assert all(ticket.state is not TicketState.PENDING for ticket in tickets)
        expect(tickets[-1], TicketState.CANCELLED)
        assert not peer.is_alive
        peer.close()
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.FAILED)
        peer.cancel(tickets[0])
        expect(writer.write(writer.connect(owner), WINDOW, [block(0, 0)]), TicketState.DONE)


def check_transport_close_settles_everything(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(20)]
        writer.transport.close()
        assert all(ticket.state is not TicketState.PENDING for ticket in tickets)
        assert not peer.is_alive
        writer.transport.close()
        expect_no_connection(writer, owner)


def check_the_owner_closing_fails_the_writer(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)
        owner.transport.close()
        wait_until(lambda: not peer.is_alive, "the loss", SOON_S)
        expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.FAILED)
        expect_no_connection(writer, owner)


def check_live_writers(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        me = writer.transport.writer_id
        assert me not in owner.transport.live_writers()
        first, second = writer.connect(owner), writer.connect(owner)
        assert owner.transport.live_writers() == {me}
        first.close()
        assert owner.transport.live_writers() == {me}
        second.close()
        wait_until(lambda: not owner.transport.live_writers(), "the writer leaving", SOON_S)


def check_a_stranger_is_refused(make: MakeTransport) -> None:
    """Who knows where a region is, but not its token, gets no connection, and the owner goes on."""
    with pair(make) as (writer, owner):
        place, slash, token = owner.transport.descriptor.address.partition("/")
        if not slash:
            return  # this backend has no token of its own
        before = owner.transport.stats().num_strangers
        for wrong in (token[:-1] + ("0" if token[-1] != "0" else "1"), "00" * (len(token) // 2)):
            guess = msgspec.structs.replace(owner.transport.descriptor, address=f"{place}/{wrong}")
            stage, text = "connected", ""
            try:
                writer.transport.connect(guess, SOON_S)
            except TransferError as error:
                stage, text = error.stage, str(error)
            assert stage == "connect", f"the stage of the failure is {stage}"
            assert wrong not in text, "an error shows the token"
        wait_until(lambda: owner.transport.stats().num_strangers == before + 2, "both are counted")
        assert owner.transport.live_writers() == frozenset()
        assert owner.view == bytes(REGION_BYTES)
        expect(writer.write(writer.connect(owner), WINDOW, [block(3, 9)]), TicketState.DONE)


def check_completion_callback_and_counters(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)
        for _ in range(5):
            writer.write(peer, WINDOW, [block(0, 0, 3)])
        wait_until(lambda: writer.num_completions == 5, "the callbacks", SOON_S)
        stats = writer.transport.stats()
        assert (stats.num_writes, stats.num_bytes) == (5, 15 * BLOCK_BYTES)
        assert stats.num_failures == 0
        assert 0 < stats.write_seconds < DEADLINE_S
        assert owner.num_completions == 0


def check_a_raising_callback_harms_nobody(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        peer = writer.connect(owner)

        def raise_error() -> None:
            raise RuntimeError("a bug of the caller")

        writer.transport.set_on_completion(raise_error)
        for _ in range(3):
            ticket = peer.post_write(WINDOW, [block(0, 0)])
            wait_until(lambda: ticket.state is TicketState.DONE, "the write", SOON_S)  # noqa: B023


def check_nothing_is_left_behind(make: MakeTransport) -> None:
    """Many connects and disconnects, from either end, leave no descriptor and no thread."""
    fds, threads = _num_fds(), threading.active_count()
    with pair(make) as (writer, owner):
        writer.connect(owner).close()
        wait_until(lambda: not owner.transport.live_writers(), "the writer leaving", SOON_S)
        open_fds, open_threads = _num_fds(), threading.active_count()
        for _ in range(50):
            peers = [writer.connect(owner) for _ in range(4)]
            for peer in peers:
                peer.post_write(WINDOW, [block(0, 0, 8)])
                peer.close()
        wait_until(lambda: _num_fds() == open_fds, "descriptors", SOON_S)
        assert threading.active_count() == open_threads
        third = Side(make)
        left_open = [writer.connect(third) for _ in range(4)]
        third.close()
        for peer in left_open:
            peer.close()
    wait_until(lambda: _num_fds() == fds, "descriptors", SOON_S)
    wait_until(lambda: threading.active_count() == threads, "threads", SOON_S)


def _num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
