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
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from baton.ipc.peer_link import LostReason
from baton.testing.handover_checks import check_all_is_over
from baton.testing.handover_pool import WorldWriter
from baton.testing.handover_world import HandoverWorld

PREFIX = [7, 1, 7, 2, 7, 3, 7, 4, 7, 5, 7, 6]


class HandoverMachine(RuleBasedStateMachine):
    """Random schedules of both engines, their messages, writes and faults: as over shared memory,
    where nothing keeps a late write out."""

    can_fence = False
    can_recall = True
    verify_kv = True
    num_steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = HandoverWorld(
            can_fence=self.can_fence, can_recall=self.can_recall, verify_kv=self.verify_kv
        )

    @initialize(is_slow=st.booleans())
    def begin(self, is_slow: bool) -> None:
        self.world.peers.is_slow = is_slow

    @rule(
        length=st.integers(1, 40),
        shared=st.booleans(),
        num_new=st.integers(1, 6),
        lost_leg=st.sampled_from(["", "", "", "", "prefill", "decode"]),
        is_late=st.booleans(),
        rounds=st.integers(0, 3),
    )
    def submit(
        self, length: int, shared: bool, num_new: int, lost_leg: str, is_late: bool, rounds: int
    ) -> None:
        first = PREFIX if shared else [length % 90]
        prompt = (first * 40)[:length]
        self.world.submit(
            prompt,
            num_new,
            prefill=lost_leg != "prefill" and not self.world.is_hung,
            decode=lost_leg != "decode" and not self.world.is_decode_hung,
            is_late=is_late,
        )
        self.run_rounds(rounds)

    @precondition(lambda self: self.world.late_legs)
    @rule(data=st.data())
    def bring_a_late_leg(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.world.late_legs) - 1))
        is_for_decode = self.world.late_legs[index].request_id.startswith("d")
        if not (self.world.is_decode_hung if is_for_decode else self.world.is_hung):
            self.world.bring_late_leg(index)

    @precondition(lambda self: not self.world.is_decode_hung)
    @rule(messages=st.integers(0, 3))
    def run_decode(self, messages: int) -> None:
        self.world.decode.receive(messages)
        self.world.decode.turn()

    @precondition(lambda self: not self.world.is_hung)
    @rule(messages=st.integers(0, 3))
    def run_prefill(self, messages: int) -> None:
        self.world.prefill.receive(messages)
        self.world.prefill.turn()

    @rule(rounds=st.integers(1, 4), do_writes_land=st.booleans())
    def run_both(self, rounds: int, do_writes_land: bool) -> None:
        """Without this, random single turns rarely get a hand-over far enough to break it."""
        self.run_rounds(rounds)
        if do_writes_land:
            for writer in busy_writers(self.world):
                while writer.tickets:
                    self.world.land_write(writer)
            self.run_rounds(1)

    def run_rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            for side, is_hung in (
                (self.world.decode, self.world.is_decode_hung),
                (self.world.prefill, self.world.is_hung),
            ):
                if not is_hung:
                    side.receive(len(side.inbox))
                    side.turn()

    @precondition(lambda self: busy_writers(self.world))
    @rule(data=st.data(), end=st.sampled_from(["land", "land", "land", "fail", "cancel", "damage"]))
    def finish_a_write(self, data: st.DataObject, end: str) -> None:
        writer = data.draw(st.sampled_from(busy_writers(self.world)))
        window = data.draw(st.sampled_from(sorted({t.window for t in writer.tickets})))
        match end:
            case "fail":
                self.world.fail_write(writer, window)
            case "cancel":
                self.world.cancel_write(writer)
            case _:
                is_damaged = end == "damage" and self.verify_kv
                self.world.land_write(writer, window, is_damaged=is_damaged)

    @precondition(lambda self: self.world.decode_requests)
    @rule(data=st.data(), leg=st.sampled_from(["prefill", "decode"]))
    def abort(self, data: st.DataObject, leg: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.decode_requests)))
        if leg == "decode" and not self.world.is_decode_hung:
            self.world.decode.role.abort(name, "test")
        elif leg == "prefill" and not self.world.is_hung:
            self.world.prefill.role.abort(f"p{name[1:]}", "test")

    @precondition(lambda self: self.world.is_linked)
    @rule(
        reason=st.sampled_from(list(LostReason)),
        kept=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        is_hello_lost=st.booleans(),
        reader=st.sampled_from(["", "decode", "prefill"]),
    )
    def cut_link(
        self, reason: LostReason, kept: tuple[int, int], is_hello_lost: bool, reader: str
    ) -> None:
        """`reader` learns of it at once, which makes most trouble for the other side."""
        self.world.cut_link(
            reason,
            num_kept_by_decode=kept[0],
            num_kept_by_prefill=kept[1],
            is_hello_lost=is_hello_lost,
        )
        if reader == "decode" and not self.world.is_decode_hung:
            self.run_decode(len(self.world.decode.inbox))
        elif reader == "prefill" and not self.world.is_hung:
            self.run_prefill(len(self.world.prefill.inbox))

    @precondition(lambda self: self.world.can_overtake)
    @rule()
    def overtake(self) -> None:
        self.world.overtake()

    @precondition(lambda self: self.world.num_said)
    @rule(data=st.data())
    def say_again(self, data: st.DataObject) -> None:
        self.world.say_again(data.draw(st.integers(0, self.world.num_said - 1)))

    @rule(
        what=st.sampled_from(
            [
                "prefill hangs",
                "decode hangs",
                "connecting is slow",
                "nobody connects",
                "prefill dies",
                "prefill is replaced",
                "the replaced die",
                "decode dies",
            ]
        )
    )
    def mishap(self, what: str) -> None:
        """One rule for all, so that they do not crowd out the steps of a hand-over. What goes on
        ends when it is drawn again."""
        world = self.world
        match what:
            case "prefill hangs":
                world.is_hung = not world.is_hung
            case "decode hangs":
                world.is_decode_hung = not world.is_decode_hung
            case "connecting is slow":
                world.peers.is_slow = not world.peers.is_slow
            case "nobody connects":  # connections that are there stay
                world.is_cut_off = not world.is_cut_off
            case "prefill dies":
                world.kill_prefill()
            case "prefill is replaced":  # it hangs, its writes under way
                world.replace_prefill()
            case "the replaced die":
                world.end_replaced()
            case "decode dies":
                world.kill_decode()

    @precondition(lambda self: self.world.peers.pending)
    @rule(data=st.data())
    def connect_to_a_pool(self, data: st.DataObject) -> None:
        pending = sorted(self.world.peers.pending)
        self.world.peers.finish(data.draw(st.sampled_from(pending)))
        if not self.world.is_hung:
            self.world.prefill.turn()  # which it wakes

    @rule(seconds=st.sampled_from([0.5, 0.5, 3.0, 12.0, 45.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @invariant()
    def nobody_ends_twice(self) -> None:
        lives = [life.outputs for life in self.world.past_lives]
        for outputs in (*lives, self.world.decode.outputs, self.world.prefill.outputs):
            ended = [o.request_id for o in outputs if o.finish is not None]
            assert len(ended) == len(set(ended))

    @invariant()
    def no_write_can_hit_blocks_of_others(self) -> None:
        self.world.check_writes()
        type(self).num_steps += 1

    def teardown(self) -> None:
        self.world.settle()
        check_all_is_over(self.world)
        self.world.close()


class FencedMachine(HandoverMachine):
    """As over TCP."""

    can_fence = True


class UnrecalledMachine(HandoverMachine):
    """As over a transfer library. Nothing is verified: bytes are right by order alone."""

    can_recall = False
    verify_kv = False


MACHINES = (HandoverMachine, FencedMachine, UnrecalledMachine)


def busy_writers(world: HandoverWorld) -> list[WorldWriter]:
    return [writer for writer in world.all_writers if writer.tickets]


@pytest.mark.parametrize("machine", MACHINES)
def test_random_schedules(machine: type[HandoverMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None)
    )


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_hundred_thousand_steps(machine: type[HandoverMachine]) -> None:
    before = machine.num_steps
    while machine.num_steps - before < 100_000:
        run_state_machine_as_test(
            machine, settings=settings(max_examples=300, stateful_step_count=100, deadline=None)
        )
