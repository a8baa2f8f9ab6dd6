"""Leases end for good, and a peer that takes no bytes is found."""

from baton.ipc.peer_link import LostReason, PeerConnected, PeerLost, PeerMessage
from baton.kvcache.block_hash import prompt_digest
from baton.messages.handover import EngineHello, KvCancel, KvReleased, KvReserved
from baton.testing.handover_world import PREFILL_ADDRESS, HandoverWorld

PROMPT = list(range(9))


def test_a_reservation_that_is_read_after_its_cancel_starts_nothing() -> None:
    world = HandoverWorld(can_fence=False)
    role = world.prefill.role
    hello = EngineHello(engine_id="decode-engine", writer_ids=[])
    for key in ("old", "new"):
        role.on_event(PeerConnected(key=key, hello=hello))
    cancel = KvCancel(transfer_id="t", reason="connection lost", generation=1)
    role.on_event(PeerMessage(key="new", message=cancel))
    late = KvReserved(
        transfer_id="t",
        generation=1,
        room=0,
        sample_index=0,
        layout_hash=world.prefill.layout.layout_hash,
        num_prompt_tokens=len(PROMPT),
        prompt_digest=prompt_digest(PROMPT),
        num_cached_blocks=0,
        block_ids=[0, 1, 2],
        regions=[],
    )
    role.on_event(PeerMessage(key="old", message=late))
    world.submit(PROMPT, 1, prefill=True, decode=False)
    world.prefill.turn()
    assert not world.all_writers
    assert world.prefill.core.pool.num_in_use == 0
    world.close()


def test_another_life_at_the_same_address_cannot_release_a_quarantine() -> None:
    world = HandoverWorld(can_fence=False)
    world.submit(PROMPT, 2, prefill=True, decode=True)
    world.decode.receive(9)
    world.prefill.receive(9)
    world.prefill.turn()
    role, pool = world.decode.role, world.decode.core.pool
    role.on_event(PeerLost(key=PREFILL_ADDRESS, reason=LostReason.HEARTBEAT))
    assert pool.num_in_use == 3
    hello = EngineHello(engine_id="another-life", writer_ids=["another"])
    role.on_event(PeerConnected(key=PREFILL_ADDRESS, hello=hello))
    released = KvReleased(transfer_id="decode-engine-1")
    role.on_event(PeerMessage(key=PREFILL_ADDRESS, message=released))
    world.decode.turn()
    assert pool.num_in_use == 3  # the first life hangs with its write under way
    assert role.handover_stats().num_quarantined_blocks == 3
    for writer in world.all_writers:
        writer.close()  # it dies
    world.decode.turn()
    assert pool.num_in_use == 0
    world.close()


def test_a_peer_that_takes_no_byte_is_stuck_and_one_that_does_is_not() -> None:
    world = HandoverWorld(can_fence=False)
    world.submit(PROMPT, 2, prefill=True, decode=True)
    for _ in range(3):
        world.prefill.receive(9)
        world.prefill.turn()
    (ticket,) = world.all_writers[0].tickets
    for _ in range(12):
        ticket.progress += 1
        world.clock.advance(2.0)
        world.prefill.turn()
    assert not any(output.finish for output in world.prefill.outputs)
    for _ in range(6):
        world.clock.advance(2.0)
        world.prefill.turn()
    (output,) = [output for output in world.prefill.outputs if output.finish]
    assert output.finish is not None
    assert output.finish.stage == "writing"
    assert output.finish.status == 504
    assert "BATON_DISAGGREGATION_STALL_TIMEOUT" in output.finish.message
    stats = world.prefill.role.handover_stats()
    assert stats.num_draining == 1
    assert stats.total_failures == [("writing", "504", 1)]
    world.settle()
    world.close()
