"""Who may still come to write into decode's pool, and who is kept out of it.

The pool of these tests keeps no late write out by itself, as one in shared memory.
"""

from baton.core.request import FinishReason
from baton.ipc.peer_link import LostReason
from baton.messages.handover import KvReserved
from baton.testing.handover_world import PREFILL_ADDRESS, HandoverWorld, Side

PROMPT = list(range(20))  # five blocks of four


def receive(side: Side, messages: int) -> None:
    side.receive(messages)
    side.turn()


def finishes(side: Side) -> list[FinishReason]:
    return [output.finish.reason for output in side.outputs if output.finish is not None]


def test_a_prefill_that_comes_to_the_pool_after_it_was_given_up_is_kept_out() -> None:
    """It was stopped between reading its reservation and mapping the pool."""
    world = HandoverWorld(can_fence=False)
    world.peers.is_slow = True
    world.submit(PROMPT, 3, prefill=True, decode=True)
    world.decode.turn()
    receive(world.prefill, 2)
    (key,) = world.peers.pending
    world.cut_link(LostReason.HEARTBEAT)
    receive(world.decode, 9)
    assert world.decode.core.pool.num_in_use == 0
    world.peers.finish(key)  # it goes on, and has not read of the loss
    world.prefill.turn()
    assert not world.all_writers
    assert finishes(world.prefill) == [FinishReason.ERROR]
    world.settle()
    world.close()


def test_the_same_prefill_in_its_next_connection_is_let_in() -> None:
    world = HandoverWorld(can_fence=False)
    world.peers.is_slow = True
    world.submit(PROMPT, 3, prefill=True, decode=True)
    world.decode.turn()
    receive(world.prefill, 2)
    (old_key,) = world.peers.pending
    world.cut_link(LostReason.HEARTBEAT)
    receive(world.decode, 9)
    world.submit(PROMPT, 3, prefill=True, decode=True)
    world.decode.turn()  # connects again, while prefill still believes in its first connection
    world.overtake()
    world.overtake()
    world.peers.finish(old_key)
    world.prefill.turn()
    assert not world.all_writers
    world.settle()
    assert finishes(world.decode) == [FinishReason.ERROR, FinishReason.LENGTH]
    assert world.decode.core.pool.num_in_use == 0
    world.close()


def test_blocks_wait_for_a_writer_whose_hello_never_came() -> None:
    """The connection broke between our reservation, which it read, and its hello."""
    world = HandoverWorld(can_fence=False)
    world.submit(PROMPT, 3, prefill=True, decode=True)
    receive(world.prefill, 2)
    (writer,) = world.all_writers
    assert writer.tickets
    world.cut_link(LostReason.CLOSED, is_hello_lost=True)
    receive(world.decode, 9)
    assert finishes(world.decode) == [FinishReason.ERROR]
    assert world.decode.core.pool.num_in_use == 5
    world.check_writes()
    while writer.tickets:
        world.land_write(writer)  # checks that the blocks are still set aside
    world.settle()
    assert world.decode.core.pool.num_in_use == 0
    world.close()


def test_each_peer_and_each_connection_is_another_guest() -> None:
    world = HandoverWorld(can_fence=False)
    told: list[KvReserved] = []
    world.decode.role._send = lambda _, message: told.append(message)  # type: ignore[attr-defined]
    for _ in range(2):
        world.submit(PROMPT, 3, prefill=False, decode=True)
    world.cut_link(LostReason.CLOSED)
    world.decode.role._on_peer_lost(  # type: ignore[attr-defined]
        PREFILL_ADDRESS, LostReason.CLOSED, "test"
    )
    world.decode.turn()
    world.submit(PROMPT, 3, prefill=False, decode=True)
    reservations = [message for message in told if isinstance(message, KvReserved)]
    first, second, third = (message.regions[0].address for message in reservations)
    assert first == second != third
    world.settle()
    world.close()
