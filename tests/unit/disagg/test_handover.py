"""Single stories of the hand-over, each of one thing that goes right or wrong.

Elsewhere: random schedules of all of them (test_handover_machine.py).
"""

import pytest

from baton.core.request import FinishReason
from baton.ipc.peer_link import LostReason
from baton.testing.handover_checks import check_all_is_over
from baton.testing.handover_world import HandoverWorld, Side

PREFIX = [7, 1, 7, 2, 7, 3, 7, 4, 7, 5, 7, 6]


def finished(side: Side, name: str) -> FinishReason | None:
    for output in side.outputs:
        if output.request_id == name and output.finish is not None:
            return output.finish.reason
    return None


@pytest.mark.parametrize("can_fence", [False, True])
def test_an_undisturbed_hand_over_gives_the_models_text(can_fence: bool) -> None:
    world = HandoverWorld(can_fence=can_fence)
    for length in (1, 4, 5, 16, 33):
        world.submit(list(range(length)), 5, prefill=True, decode=True)
    world.settle()
    check_all_is_over(world)
    assert all(finished(world.decode, f"d{i}") is FinishReason.LENGTH for i in range(5))
    assert all(finished(world.prefill, f"p{i}") is FinishReason.LENGTH for i in range(5))


def test_a_prefix_that_decode_holds_is_not_sent_again() -> None:
    world = HandoverWorld(can_fence=True)
    world.submit(PREFIX * 2, 2, prefill=True, decode=True)
    world.settle()
    world.submit([*PREFIX * 2, 50, 51, 52], 2, prefill=True, decode=True)
    for _ in range(4):
        world.decode.receive(9)
        world.decode.turn()
        world.prefill.receive(9)
        world.prefill.turn()
    written = sum(copy.num_bytes for w in world.all_writers for t in w.tickets for copy in t.copies)
    assert written == world.decode.layout.block_bytes  # 27 tokens, 24 of them already there
    world.settle()
    check_all_is_over(world)
    told = [o.transferred_tokens for o in world.prefill.outputs if o.finish is not None]
    assert told == [24, world.decode.layout.block_size]
    assert not any(o.transferred_tokens for o in world.decode.outputs)


def test_blocks_stay_quarantined_while_a_hung_peer_may_still_write() -> None:
    world = HandoverWorld(can_fence=False)
    world.submit(list(range(20)), 3, prefill=True, decode=True)
    world.decode.turn()
    world.prefill.receive(2)
    world.prefill.turn()
    world.is_hung = True
    world.cut_link(LostReason.HEARTBEAT)
    world.decode.receive(9)
    world.decode.turn()
    assert finished(world.decode, "d0") is FinishReason.ERROR
    assert world.decode.core.pool.num_in_use == 5
    for writer in world.all_writers:
        while writer.tickets:
            world.land_write(writer)  # checks that the blocks are still set aside
    world.settle()
    check_all_is_over(world)


def let_both_run(world: HandoverWorld, num_turns: int) -> None:
    for _ in range(num_turns):
        for side in (world.prefill, world.decode):
            side.receive(9)
            side.turn()


def test_a_write_that_cannot_be_recalled_holds_the_blocks_at_both_ends() -> None:
    """Decode hung, was given up, goes on and connects again: it must not hear that all is over."""
    world = HandoverWorld(can_fence=False, can_recall=False)
    world.submit(list(range(20)), 3, prefill=True, decode=True)
    world.decode.turn()
    world.prefill.receive(2)
    world.prefill.turn()
    (writer,) = world.all_writers
    assert writer.tickets
    world.cut_link(LostReason.HEARTBEAT)
    let_both_run(world, num_turns=1)
    assert not writer.is_alive
    assert finished(world.decode, "d0") is FinishReason.ERROR
    world.submit(list(range(50, 54)), 2, prefill=True, decode=True)  # connects again
    let_both_run(world, num_turns=10)
    assert world.prefill.core.pool.num_in_use > 1
    assert world.decode.core.pool.num_in_use > 1
    while writer.tickets:
        world.land_write(writer)  # checks that the blocks are still set aside
    world.settle()
    check_all_is_over(world)


def test_decode_hears_of_a_lost_pool_when_nothing_can_arrive_any_more() -> None:
    world = HandoverWorld(can_fence=False, can_recall=False)
    world.submit(list(range(20)), 3, prefill=True, decode=True)
    world.decode.turn()
    world.prefill.receive(2)
    world.prefill.turn()
    (writer,) = world.all_writers
    writer.close()
    let_both_run(world, num_turns=3)
    assert finished(world.prefill, "p0") is FinishReason.ERROR
    assert not any(output.finish for output in world.decode.outputs)
    while writer.tickets:
        world.land_write(writer)
    let_both_run(world, num_turns=3)
    assert finished(world.decode, "d0") is FinishReason.ERROR
    world.settle()
    check_all_is_over(world)


def test_a_prompt_that_differs_between_the_legs_is_refused() -> None:
    world = HandoverWorld(can_fence=True)
    world.submit([1, 2, 3], 2, prefill=False, decode=True)
    world._num_requests -= 1  # the same room again, for the other leg
    world.submit([1, 2, 4], 2, prefill=True, decode=False)
    world.settle()
    check_all_is_over(world)
    failure = next(o.finish for o in world.decode.outputs if o.finish is not None)
    assert "different prompts" in failure.message
