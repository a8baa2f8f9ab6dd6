"""Whatever is said twice, late or about nobody releases nothing twice: the ledgers stay exact.

A second transfer is under way each time, whose blocks a wrong release could take.
"""

from collections.abc import Iterator

import pytest

from baton.core.request import FinishReason
from baton.ipc.peer_link import LostReason, PeerMessage
from baton.messages.handover import (
    HandoverMessage,
    KvCancel,
    KvDelivered,
    KvFailed,
    KvReleased,
)
from baton.testing.handover_world import PREFILL_ADDRESS, HandoverWorld, Side

FIRST, SECOND = "decode-engine-1", "decode-engine-2"
LINK = "link-0"
Ledger = dict[str, int]
SECOND_ALONE: Ledger = {"request:d1": 4}


@pytest.fixture
def world() -> Iterator[HandoverWorld]:
    """Both transfers are reserved and their writes posted; none has landed."""
    made = HandoverWorld(can_fence=False)
    made.submit(list(range(9)), 3, prefill=True, decode=True)  # three blocks of four
    made.submit(list(range(50, 64)), 3, prefill=True, decode=True)  # four
    for _ in range(4):
        made.prefill.receive(9)
        made.prefill.turn()
    assert ledger(made.decode) == {"request:d0": 3, **SECOND_ALONE}
    assert ledger(made.prefill) == {"request:p0": 3, "request:p1": 4}
    yield made
    made.close()


def ledger(side: Side) -> Ledger:
    side.core.pool.check_invariants()
    return {name: len(blocks) for name, blocks in side.core.pool.holders().items() if blocks}


def turn(side: Side) -> None:
    side.receive(9)
    side.turn()


def say_to_decode(world: HandoverWorld, message: HandoverMessage) -> None:
    world.decode.role.on_event(PeerMessage(key=PREFILL_ADDRESS, message=message))
    world.decode.turn()


def say_to_prefill(world: HandoverWorld, message: HandoverMessage) -> None:
    world.prefill.role.on_event(PeerMessage(key=LINK, message=message))
    world.prefill.turn()


def cancel_the_first(world: HandoverWorld) -> None:
    """Decode gives it up, prefill hears of it, and its write is still under way."""
    world.decode.role.abort("d0", "test")
    assert ledger(world.decode) == {f"quarantine:{FIRST}": 3, **SECOND_ALONE}
    turn(world.prefill)
    assert num_draining(world) == 1


def drain_the_first(world: HandoverWorld) -> None:
    (writer,) = world.all_writers
    world.cancel_write(writer)
    turn(world.prefill)
    assert num_draining(world) == 0
    assert ledger(world.prefill) == {"request:p1": 4}


def num_draining(world: HandoverWorld) -> int:
    return world.prefill.role.handover_stats().num_draining


def num_said_to_decode(world: HandoverWorld, message: HandoverMessage) -> int:
    return list(world.decode.inbox).count(PeerMessage(key=PREFILL_ADDRESS, message=message))


def check_the_second_is_served(world: HandoverWorld) -> None:
    world.settle()
    ends = [o for side in (world.decode, world.prefill) for o in side.outputs if o.finish]
    assert sorted(o.request_id for o in ends) == ["d0", "d1", "p0", "p1"]
    (second,) = [o.finish for o in ends if o.request_id == "d1"]
    assert second is not None
    assert second.reason is FinishReason.LENGTH
    assert ledger(world.decode) == ledger(world.prefill) == {}


def answers(transfer_id: str) -> list[HandoverMessage]:
    return [
        KvReleased(transfer_id=transfer_id),
        KvFailed(transfer_id=transfer_id, reason="said again", status=503),
        KvDelivered(transfer_id=transfer_id, token_id=1, num_blocks=3, num_cached_tokens=0),
    ]


def test_a_release_that_comes_twice(world: HandoverWorld) -> None:
    cancel_the_first(world)
    drain_the_first(world)
    released = KvReleased(transfer_id=FIRST)
    assert num_said_to_decode(world, released) == 1
    turn(world.decode)
    assert ledger(world.decode) == SECOND_ALONE
    say_to_decode(world, released)
    assert ledger(world.decode) == SECOND_ALONE
    assert world.decode.role.handover_stats().total_stages["quarantined"].count == 1
    check_the_second_is_served(world)


def test_a_cancel_that_comes_twice_while_the_write_is_pending(world: HandoverWorld) -> None:
    cancel_the_first(world)
    say_to_prefill(world, KvCancel(transfer_id=FIRST, reason="said again", generation=1))
    assert num_draining(world) == 1
    assert num_said_to_decode(world, KvReleased(transfer_id=FIRST)) == 0
    drain_the_first(world)
    assert num_said_to_decode(world, KvReleased(transfer_id=FIRST)) == 1
    check_the_second_is_served(world)


def test_a_cancel_that_comes_again_when_all_is_over(world: HandoverWorld) -> None:
    cancel_the_first(world)
    drain_the_first(world)
    say_to_prefill(world, KvCancel(transfer_id=FIRST, reason="said again", generation=1))
    assert num_said_to_decode(world, KvReleased(transfer_id=FIRST)) == 2
    assert ledger(world.prefill) == {"request:p1": 4}
    turn(world.decode)
    assert ledger(world.decode) == SECOND_ALONE
    check_the_second_is_served(world)


@pytest.mark.parametrize("index", range(3), ids=["released", "failed", "delivered"])
def test_an_answer_after_the_quarantine_is_over(world: HandoverWorld, index: int) -> None:
    cancel_the_first(world)
    drain_the_first(world)
    turn(world.decode)
    say_to_decode(world, answers(FIRST)[index])
    assert ledger(world.decode) == SECOND_ALONE
    check_the_second_is_served(world)


def test_a_release_after_the_loss_has_released(world: HandoverWorld) -> None:
    """Its writer died, which released the blocks; its last word is read on the next connection."""
    cancel_the_first(world)
    world.cut_link(LostReason.CLOSED)
    (writer,) = world.all_writers
    writer.die("test")
    turn(world.decode)
    assert ledger(world.decode) == {}
    world.submit(list(range(70, 84)), 3, prefill=False, decode=True)
    assert ledger(world.decode) == {"request:d2": 4}
    for message in answers(FIRST) + answers(SECOND):
        say_to_decode(world, message)
        assert ledger(world.decode) == {"request:d2": 4}
    world.settle()
    assert ledger(world.decode) == ledger(world.prefill) == {}


@pytest.mark.parametrize("index", range(3), ids=["released", "failed", "delivered"])
@pytest.mark.parametrize("name", ["decode-engine-99", "another-engine-1", ""])
def test_an_answer_about_an_unknown_transfer(world: HandoverWorld, index: int, name: str) -> None:
    before = ledger(world.decode)
    say_to_decode(world, answers(name)[index])
    assert ledger(world.decode) == before
    say_to_prefill(world, KvCancel(transfer_id=name, reason="test"))
    assert ledger(world.prefill) == {"request:p0": 3, "request:p1": 4}
    assert num_said_to_decode(world, KvReleased(transfer_id=name)) == 1
    world.decode.role.abort("d0", "test")
    check_the_second_is_served(world)


def test_a_release_of_a_transfer_that_nobody_gave_up(world: HandoverWorld) -> None:
    """Nothing was cancelled: prefill goes on to write, and the blocks stay its target."""
    before = ledger(world.decode)
    say_to_decode(world, KvReleased(transfer_id=FIRST))
    assert ledger(world.decode) == before
    world.check_writes()
    world.settle()
    finishes = [o.finish.reason for o in world.decode.outputs if o.finish]
    assert finishes == [FinishReason.LENGTH, FinishReason.LENGTH]
    assert ledger(world.decode) == ledger(world.prefill) == {}


@pytest.mark.parametrize("index", range(3), ids=["released", "failed", "delivered"])
def test_an_answer_after_the_delivery(world: HandoverWorld, index: int) -> None:
    (writer,) = world.all_writers
    world.land_write(writer, FIRST)
    turn(world.prefill)
    turn(world.decode)  # it runs
    say_to_decode(world, answers(FIRST)[index])
    world.settle()
    finishes = [o.finish.reason for o in world.decode.outputs if o.finish]
    assert finishes == [FinishReason.LENGTH, FinishReason.LENGTH]
    assert ledger(world.decode) == ledger(world.prefill) == {}
