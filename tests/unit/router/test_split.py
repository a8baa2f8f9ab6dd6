"""Whole or split: the reasons, and that equal ways do not flap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.split import PairCost, SplitReason, SplitRules, Splitter, WholeCost, decide

RULES = SplitRules(margin=0.2, max_stall_s=0.05, max_whole_tokens=512)
WHOLE_REASONS = {
    *(SplitReason.NO_PAIR, SplitReason.WHOLE_FASTER, SplitReason.KEPT_WHOLE),
    SplitReason.SHARED_CORES,
}


def whole(ttft_s: float, *, queue_s: float = 0.0, num_streams: int = 0) -> WholeCost:
    return WholeCost(queue_s=queue_s, compute_s=ttft_s - queue_s, num_streams=num_streams)


def at_decode(num_uncached: int, *, num_streams: int = 0, num_ahead: int = 0) -> WholeCost:
    return WholeCost(
        queue_s=9.0,
        compute_s=9.0,
        num_streams=num_streams,
        num_ahead=num_ahead,
        num_uncached=num_uncached,
        shares_cores=True,
    )


def pair(ttft_s: float) -> PairCost:
    return PairCost(prefill_s=ttft_s / 2, handover_s=ttft_s / 2)


@pytest.mark.parametrize(
    ("one", "two", "was_whole", "reason"),
    [
        (None, pair(1), None, SplitReason.NO_WHOLE_WORKER),
        (whole(1), None, None, SplitReason.NO_PAIR),
        (whole(0.02), pair(0.03), None, SplitReason.WHOLE_FASTER),
        (whole(0.03), pair(0.02), None, SplitReason.SPLIT_FASTER),
        (whole(0.02, num_streams=9), pair(0.03), None, SplitReason.WHOLE_FASTER),
        (whole(0.06, num_streams=1), pair(1), None, SplitReason.WOULD_STALL_STREAMS),
        (whole(0.06, num_streams=1), pair(1), True, SplitReason.WOULD_STALL_STREAMS),
        (whole(0.06), pair(1), None, SplitReason.WHOLE_FASTER),
        (whole(0.9, queue_s=0.88, num_streams=1), pair(1), None, SplitReason.WHOLE_FASTER),
        (whole(1.1), pair(1), True, SplitReason.KEPT_WHOLE),
        (whole(1.3), pair(1), True, SplitReason.SPLIT_FASTER),
        (whole(0.9), pair(1), False, SplitReason.KEPT_SPLIT),
        (whole(0.8), pair(1), False, SplitReason.WHOLE_FASTER),
        (at_decode(512, num_streams=9), pair(1), False, SplitReason.SHARED_CORES),
        (at_decode(513, num_streams=1), pair(1), True, SplitReason.WOULD_STALL_STREAMS),
        (
            at_decode(513, num_streams=1, num_ahead=512),
            pair(1),
            True,
            SplitReason.WOULD_STALL_STREAMS,
        ),
        (at_decode(5000, num_streams=1, num_ahead=513), pair(1), False, SplitReason.SHARED_CORES),
        (at_decode(5000), pair(1), None, SplitReason.SHARED_CORES),
        (at_decode(5000, num_streams=1), None, None, SplitReason.NO_PAIR),
    ],
)
def test_reasons(
    one: WholeCost | None, two: PairCost | None, was_whole: bool | None, reason: SplitReason
) -> None:
    decision = decide(one, two, RULES, was_whole)
    assert decision.reason is reason
    assert decision.is_whole == (reason in WHOLE_REASONS)


def test_it_can_be_switched_off_but_a_lone_worker_is_still_used() -> None:
    rules = SplitRules(is_conditional=False)
    assert decide(whole(0.01), pair(1), rules, True).reason is SplitReason.ALWAYS_SPLIT
    assert decide(at_decode(10), pair(1), rules, None).reason is SplitReason.ALWAYS_SPLIT
    assert decide(whole(0.01), None, rules, None).is_whole


costs = st.floats(0.001, 10)


@given(costs, costs, st.booleans() | st.none(), st.integers(0, 5))
def test_never_much_slower_than_the_better_way(
    one_s: float, two_s: float, was_whole: bool | None, num_streams: int
) -> None:
    one, two = whole(one_s, num_streams=num_streams), pair(two_s)
    decision = decide(one, two, RULES, was_whole)
    assert decision.is_whole == (decision.reason in WHOLE_REASONS)
    chosen_s = one_s if decision.is_whole else two_s
    if decision.reason is not SplitReason.WOULD_STALL_STREAMS:
        assert chosen_s <= min(one_s, two_s) * (1 + RULES.margin) + 1e-9


@given(st.lists(st.floats(0.95, 1.05), min_size=2, max_size=50))
def test_ways_that_take_equally_long_do_not_flap(noise: list[float]) -> None:
    splitter = Splitter(RULES)
    decisions = {splitter.decide(100, whole(factor), pair(1.0)).is_whole for factor in noise}
    assert len(decisions) == 1


def test_sizes_are_decided_apart_and_a_missing_way_is_not_remembered() -> None:
    splitter = Splitter(RULES)
    assert splitter.decide(100, whole(0.5), pair(1.0)).is_whole
    assert not splitter.decide(9000, whole(3.0), pair(1.0)).is_whole
    assert splitter.decide(100, whole(1.1), pair(1.0)).reason is SplitReason.KEPT_WHOLE
    assert splitter.decide(9000, whole(0.9), pair(1.0)).reason is SplitReason.KEPT_SPLIT
    assert splitter.decide(9000, whole(1.0), None).is_whole
    assert splitter.decide(9000, whole(0.9), pair(1.0)).reason is SplitReason.KEPT_SPLIT
