"""The other side is another process, which dies, hangs, goes on later, or starts anew.

Elsewhere: those processes (region_owner.py, region_writer.py), hosts of their own (hosts.py).
"""

import hashlib
import os
import signal
import time

from baton.core.errors import TransferError
from baton.testing.region_owner import RemoteOwner
from baton.testing.region_process import port_of
from baton.testing.region_writer import RemoteWriter
from baton.testing.transport_checks.sides import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    REGION_BYTES,
    SOON_S,
    WHOLE_REGION,
    WINDOW,
    MakeTransport,
    Side,
    apply,
    block,
    expect,
    scattered,
    wait_until,
)
from baton.transfer.protocol import TicketState


def check_another_process(make: MakeTransport, backend: str) -> None:
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        copies = scattered(2000, seed=5)
        expected = bytearray(REGION_BYTES)
        apply(copies, writer.view, expected)
        expect(writer.write(peer, WINDOW, copies), TicketState.DONE)
        assert owner.ask(f"digest 0 {REGION_BYTES}") == hashlib.sha256(expected).hexdigest()
        assert owner.ask("writers") == writer.transport.writer_id
        writer.transport.close()
        wait_until(lambda: owner.ask("writers") == "", "the writer leaving", SOON_S)
    writer.close()


def check_a_killed_owner_fails_its_writers(make: MakeTransport, backend: str) -> None:
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.DONE)
        whole = [block(0, 0, NUM_BLOCKS)]
        tickets = [peer.post_write(WINDOW, whole) for _ in range(200)]
        os.kill(owner.process.pid, signal.SIGKILL)
        owner.process.wait()
        wait_until(lambda: not peer.is_alive, "the death", SOON_S)
        writer.wait(*tickets)
        expect(tickets[-1], TicketState.FAILED)
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.FAILED)
    writer.close()


def check_a_hung_owner_can_be_left(make: MakeTransport, backend: str) -> None:
    """A stopped owner blocks neither posting nor closing. What cannot be recalled stays PENDING
    until the owner has ended."""
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        os.kill(owner.process.pid, signal.SIGSTOP)
        started_s = time.monotonic()
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(4)]
        peer.cancel(tickets[0])
        peer.close()
        assert time.monotonic() - started_s < SOON_S
        left = tickets if writer.transport.can_recall else tickets[1:]
        assert all(ticket.state is not TicketState.PENDING for ticket in left)
        os.kill(owner.process.pid, signal.SIGKILL)
        writer.wait(*tickets)
    writer.close()


def check_a_slow_peer_holds_up_nobody(make: MakeTransport, backend: str) -> None:
    """With one owner stopped in the middle of large writes to every queue of it, all that goes to
    another arrives."""
    writer = Side(make, fill=3)
    windows = [f"{WINDOW}-{index}" for index in range(16)]
    whole = [block(0, 0, NUM_BLOCKS)]
    with RemoteOwner(backend, REGION_BYTES) as stopped, RemoteOwner(backend, REGION_BYTES) as well:
        for owner in (stopped, well):
            for window in windows:
                owner.ask(f"open {window} 0 {REGION_BYTES}")
        slow = writer.transport.connect(stopped.descriptor, SOON_S)
        fast = writer.transport.connect(well.descriptor, SOON_S)
        os.kill(stopped.process.pid, signal.SIGSTOP)
        held_up = [slow.post_write(window, whole) for window in windows]
        tickets = [fast.post_write(window, whole) for window in windows]
        writer.wait(*tickets)
        for ticket in tickets:
            expect(ticket, TicketState.DONE)
        if writer.transport.can_fence:  # its owner has to take part, so nothing else can be true
            assert any(ticket.state is TicketState.PENDING for ticket in held_up)
        wanted = hashlib.sha256(writer.view).hexdigest()
        assert well.ask(f"digest 0 {REGION_BYTES}") == wanted
    writer.close()


def check_a_large_write_holds_up_no_other_queue(make: MakeTransport, backend: str) -> None:
    """A small write passes those of the same peer that wait before it in another queue."""
    writer = Side(make, fill=3)
    names = [f"{WINDOW}-{index}" for index in range(64)]
    with RemoteOwner(backend, REGION_BYTES) as owner:
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        for name in names:
            owner.ask(f"open {name} 0 {REGION_BYTES}")
        # Seconds of it, so that none can be over when the first small one is.
        large = [peer.post_write(names[0], [block(0, 0, NUM_BLOCKS)] * 8) for _ in range(64)]
        small = [peer.post_write(name, [block(0, 0)]) for name in names[1:]]
        wait_until(lambda: any(t.state is TicketState.DONE for t in small), "a small write")
        assert large[-1].state is TicketState.PENDING
        for ticket in reversed(large):
            peer.cancel(ticket)
        writer.wait(*small, *large)
    writer.close()


def check_a_killed_writer_writes_nothing_more(make: MakeTransport, backend: str) -> None:
    owner = Side(make)
    with RemoteWriter(backend, REGION_BYTES) as writer:
        _write_much(writer, owner)
        writer.process.kill()
        _when_the_writers_are_gone_nothing_changes(make, owner)
    owner.close()


def check_a_writer_that_was_stopped(make: MakeTransport, backend: str) -> None:
    """Stopped in the middle of its writes, it goes on later: after its window was fenced, or its
    word that all has ended was heard, it changes nothing."""
    owner = Side(make)
    with RemoteWriter(backend, REGION_BYTES) as writer:
        name = _write_much(writer, owner)
        with writer.stopped():
            assert name in owner.transport.live_writers(), "a stopped writer is no dead one"
            owner.transport.close_window(WINDOW)
            if owner.transport.can_fence:
                owner.view[:] = bytes(REGION_BYTES)
        if not owner.transport.can_fence:
            writer.ask("cancel")
        wait_until(lambda: "pending" not in writer.ask("states"), "all writes ending")
        if owner.transport.can_fence:
            assert "failed" in writer.ask("states")
        else:
            owner.view[:] = bytes(REGION_BYTES)
        assert owner.view == bytes(REGION_BYTES)
        assert writer.ask("disconnect") == "ok"
        _when_the_writers_are_gone_nothing_changes(make, owner)
    owner.close()


def check_a_stopped_writer_that_is_killed(make: MakeTransport, backend: str) -> None:
    owner = Side(make)
    with RemoteWriter(backend, REGION_BYTES) as writer:
        _write_much(writer, owner)
        with writer.stopped():
            writer.process.kill()
            _when_the_writers_are_gone_nothing_changes(make, owner)
    owner.close()


def check_an_owner_that_was_stopped(make: MakeTransport, backend: str) -> None:
    """The writer left it meanwhile; what the owner then closes stays as it is."""
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as owner:
        owner.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(owner.descriptor, SOON_S)
        for _ in range(200):
            peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)])
        os.kill(owner.process.pid, signal.SIGSTOP)
        try:
            peer.close()
        finally:
            os.kill(owner.process.pid, signal.SIGCONT)
        if not writer.transport.can_fence:
            wait_until(lambda: owner.ask("writers") == "", "the writer leaving")
        owner.ask(f"close {WINDOW}")
        before = owner.ask(f"digest 0 {REGION_BYTES}")
        wait_until(lambda: owner.ask("writers") == "", "the writer leaving")
        assert owner.ask(f"digest 0 {REGION_BYTES}") == before
    writer.close()


def check_a_restarted_owner_is_not_taken_for_the_old_one(make: MakeTransport, backend: str) -> None:
    """Where a backend listens on a port, the new process takes the very same one."""
    writer = Side(make, fill=3)
    with RemoteOwner(backend, REGION_BYTES) as old:
        old.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        peer = writer.transport.connect(old.descriptor, SOON_S)
        tickets = [peer.post_write(WINDOW, [block(0, 0, NUM_BLOCKS)]) for _ in range(200)]
        old.process.kill()
        old.process.wait()
    with RemoteOwner(backend, REGION_BYTES, port=port_of(old.descriptor)) as new:
        new.ask(f"open {WINDOW} 0 {REGION_BYTES}")
        assert port_of(new.descriptor) == port_of(old.descriptor)
        assert new.descriptor.address != old.descriptor.address
        writer.wait(*tickets)
        expect(tickets[-1], TicketState.FAILED)
        assert not peer.is_alive
        expect(writer.write(peer, WINDOW, [block(0, 0)]), TicketState.FAILED)
        stage = "connected"
        try:
            writer.transport.connect(old.descriptor, SOON_S)
        except TransferError as error:
            stage = error.stage
        assert stage == "connect", f"the old descriptor: {stage}"
        nothing = hashlib.sha256(bytes(REGION_BYTES)).hexdigest()
        assert new.ask(f"digest 0 {REGION_BYTES}") == nothing
        again = writer.transport.connect(new.descriptor, SOON_S)
        expect(writer.write(again, WINDOW, [block(0, 0, NUM_BLOCKS)]), TicketState.DONE)
        assert new.ask(f"digest 0 {REGION_BYTES}") == hashlib.sha256(writer.view).hexdigest()
    writer.close()


def _write_much(writer: RemoteWriter, owner: Side) -> str:
    """Returns the writer's id once its bytes arrive; there are seconds of writes behind them."""
    owner.transport.open_window(WINDOW, WHOLE_REGION)
    assert writer.connect(owner.transport.descriptor) == "ok"
    writer.ask(f"post {WINDOW} {REGION_BYTES} 500")
    wait_until(lambda: owner.view[0] == writer.source[0], "the first byte")
    return writer.ask("id")


def _when_the_writers_are_gone_nothing_changes(make: MakeTransport, owner: Side) -> None:
    """Compared after another writer was served, for whom the transport had to turn."""
    wait_until(lambda: not owner.transport.live_writers(), "the writer leaving")
    owner.view[:] = bytes(REGION_BYTES)
    other = Side(make, fill=5)
    owner.transport.open_window("another", [(0, BLOCK_BYTES)])
    expect(other.write(other.connect(owner), "another", [block(0, 0)]), TicketState.DONE)
    assert owner.view[BLOCK_BYTES:] == bytes(REGION_BYTES - BLOCK_BYTES)
    other.close()
