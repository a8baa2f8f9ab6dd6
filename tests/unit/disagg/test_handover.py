"""The hand-over under faults at every step.

Whatever arrives late, breaks, dies or hangs: no write hits a block that is not its own any more,
every request ends exactly once, the text of those that finish is that of the model alone, and both
ledgers return to zero.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from baton.core.request import FinishReason
from baton.ipc.peer_link import LostReason
from baton.testing.handover_world import MODEL, HandoverWorld, Side

PREFIX = [7, 1, 7, 2, 7, 3, 7, 4, 7, 5, 7, 6]


def expected(prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(MODEL.next_token(tokens))
    return tokens[len(prompt) :]


class HandoverMachine(RuleBasedStateMachine):
    """Random schedules of both engines, their messages, writes and faults."""

    can_fence = False

    def __init__(self) -> None:
        super().__init__()
        self.world = HandoverWorld(can_fence=self.can_fence, verify_kv=True)

    @rule(
        length=st.integers(1, 40),
        shared=st.booleans(),
        num_new=st.integers(1, 6),
        lost_leg=st.sampled_from(["", "", "", "prefill", "decode"]),
    )
    def submit(self, length: int, shared: bool, num_new: int, lost_leg: str) -> None:
        first = PREFIX if shared else [length % 90]
        prompt = (first * 40)[:length]
        self.world.submit(
            prompt,
            num_new,
            prefill=lost_leg != "prefill" and not self.world.is_hung,
            decode=lost_leg != "decode",
        )

    @rule(messages=st.integers(0, 3))
    def run_decode(self, messages: int) -> None:
        self.world.decode.receive(messages)
        self.world.decode.turn()

    @precondition(lambda self: not self.world.is_hung)
    @rule(messages=st.integers(0, 3))
    def run_prefill(self, messages: int) -> None:
        self.world.prefill.receive(messages)
        self.world.prefill.turn()

    @rule(rounds=st.integers(1, 4))
    def run_both(self, rounds: int) -> None:
        """Without this, random single turns rarely get a hand-over far enough to break it."""
        for _ in range(rounds):
            for side in (self.world.decode, self.world.prefill):
                if side is self.world.decode or not self.world.is_hung:
                    side.receive(len(side.inbox))
                    side.turn()

    @precondition(lambda self: any(writer.tickets for writer in self.world.all_writers))
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def finish_a_write(self, data: st.DataObject, fails: bool) -> None:
        busy = [index for index, w in enumerate(self.world.all_writers) if w.tickets]
        writer = self.world.all_writers[data.draw(st.sampled_from(busy))]
        if fails:
            self.world.fail_write(writer)
        else:
            self.world.land_write(writer)

    @precondition(lambda self: self.world.decode_requests)
    @rule(data=st.data(), leg=st.sampled_from(["prefill", "decode"]))
    def abort(self, data: st.DataObject, leg: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.decode_requests)))
        if leg == "decode":
            self.world.decode.role.abort(name, "test")
        elif not self.world.is_hung:
            self.world.prefill.role.abort(f"p{name[1:]}", "test")

    @rule(reason=st.sampled_from(list(LostReason)))
    def cut_link(self, reason: LostReason) -> None:
        self.world.cut_link(reason)

    @rule()
    def kill_prefill(self) -> None:
        self.world.kill_prefill()

    @rule()
    def hang_or_wake_prefill(self) -> None:
        self.world.is_hung = not self.world.is_hung

    @rule(seconds=st.sampled_from([0.5, 12.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @invariant()
    def nobody_ends_twice(self) -> None:
        for side in (self.world.decode, self.world.prefill):
            ended = [o.request_id for o in side.outputs if o.finish is not None]
            assert len(ended) == len(set(ended))

    def teardown(self) -> None:
        self.world.settle()
        check_all_is_over(self.world)
        self.world.close()


def check_all_is_over(world: HandoverWorld) -> None:
    for name, request in world.decode_requests.items():
        outputs = [output for output in world.decode.outputs if output.request_id == name]
        assert outputs, f"{name} never ended"
        finish = outputs[-1].finish
        assert finish is not None
        assert sum(output.finish is not None for output in outputs) == 1
        tokens = [token for output in outputs for token in output.token_ids]
        wanted = expected(request.prompt_token_ids, request.sampling.max_new_tokens)
        assert tokens == wanted[: len(tokens)], "the text is not the model's"
        if finish.reason is FinishReason.LENGTH:
            assert tokens == wanted
        else:
            assert finish.message, f"{name} ended without saying why"
    ended = {o.request_id for o in world.prefill.outputs if o.finish is not None}
    assert ended >= world.prefill_requests
    for side in (world.decode, world.prefill):
        assert side.core.pool.num_in_use == 0, side.core.pool.holders()
        assert side.role.num_handovers == 0
    assert not world.transport.windows


class FencedMachine(HandoverMachine):
    can_fence = True


HandoverMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
FencedMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestHandover = HandoverMachine.TestCase
TestFencedHandover = FencedMachine.TestCase


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [HandoverMachine, FencedMachine])
def test_a_hundred_thousand_steps(machine: type[HandoverMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=1000, stateful_step_count=100, deadline=None)
    )


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
