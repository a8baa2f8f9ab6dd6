"""A writer that its owner has given up is kept out; one that is in is told apart and waited for.

Elsewhere: what a writer that is in may do (windows.py), processes that hang (processes.py).
"""

from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.testing.region_writer import RemoteWriter
from baton.testing.transport_checks.sides import (
    REGION_BYTES,
    SOON_S,
    WHOLE_REGION,
    WINDOW,
    MakeTransport,
    Side,
    block,
    expect,
    pair,
    wait_until,
)
from baton.transfer.protocol import TicketState


def check_guests_are_told_apart(make: MakeTransport) -> None:
    with pair(make) as (writer, owner):
        known, other = owner.transport.admit("known"), owner.transport.admit("other")
        assert known.place == other.place == owner.transport.descriptor.place
        assert len({known.address, other.address, owner.transport.descriptor.address}) == 3
        peer = writer.transport.connect(known, SOON_S)
        me = {writer.transport.writer_id}
        assert owner.transport.live_writers("known") == owner.transport.live_writers() == me
        assert not owner.transport.live_writers("other")
        assert not owner.transport.live_writers("never heard of")
        anyone = writer.connect(owner)
        assert owner.transport.live_writers("known") == owner.transport.live_writers() == me
        peer.close()
        wait_until(lambda: not owner.transport.live_writers("known"), "the guest leaving", SOON_S)
        assert owner.transport.live_writers() == me
        anyone.close()
        refused = "admitted"
        try:
            owner.transport.admit("known")
        except ValueError:
            refused = "refused"
        assert refused == "refused", "a guest is admitted twice"


def check_an_expelled_guest_is_kept_out(make: MakeTransport) -> None:
    """It was told of the region and comes when it has been given up; who came before stays."""
    with pair(make) as (writer, owner):
        late, known = owner.transport.admit("late"), owner.transport.admit("known")
        peer = writer.transport.connect(known, SOON_S)
        for _ in range(2):
            owner.transport.expel("late")
        assert not owner.transport.live_writers("late")
        expect_refusal(writer, late)
        assert not owner.transport.live_writers("late")
        owner.transport.expel("known")
        assert owner.transport.live_writers("known"), "it is connected yet"
        expect(writer.write(peer, WINDOW, [block(1, 1)]), TicketState.DONE)
        expect_refusal(writer, known)
        peer.close()
        wait_until(lambda: not owner.transport.live_writers("known"), "the guest leaving", SOON_S)
        owner.view[:] = bytes(REGION_BYTES)
        again = owner.transport.admit("known")
        expect_refusal(writer, known)
        assert owner.view == bytes(REGION_BYTES)
        expect(
            writer.write(writer.transport.connect(again, SOON_S), WINDOW, [block(2, 2)]),
            TicketState.DONE,
        )


def check_a_writer_that_was_stopped_before_it_came(make: MakeTransport, backend: str) -> None:
    owner = Side(make)
    owner.transport.open_window(WINDOW, WHOLE_REGION)
    descriptor = owner.transport.admit("stopped")
    with RemoteWriter(backend, REGION_BYTES) as writer:
        assert writer.ask("id"), "it has started"
        with writer.stopped():
            writer.start_to_connect(descriptor)
            owner.transport.expel("stopped")
            assert not owner.transport.live_writers("stopped")
        assert "stage connect" in writer.read_line()
        assert not owner.transport.live_writers()
        assert owner.view == bytes(REGION_BYTES)
    owner.close()


def expect_refusal(writer: Side, descriptor: RegionDescriptor) -> None:
    stage = "connected"
    try:
        writer.transport.connect(descriptor, SOON_S)
    except TransferError as error:
        stage = error.stage
    assert stage == "connect", f"the stage of the failure is {stage}"
