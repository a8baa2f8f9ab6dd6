"""Breakers: the table of moves, who is blamed, and the one probe."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.breaker import (
    LEGAL_MOVES,
    Breaker,
    BreakerPhase,
    BreakerRules,
    Outcome,
    admits,
    after_admission,
    after_outcome,
    as_of,
    outcome_of_status,
)
from baton.router.breakers import Breakers

RULES = BreakerRules(
    failure_threshold=3, window_s=10.0, cool_down_s=1.0, max_cool_down_s=4.0, probe_limit_s=5.0
)


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(RULES.failure_threshold):
        breaker = after_outcome(breaker, RULES, Outcome.FAILURE, breaker.epoch, now_s)
    assert breaker.phase is BreakerPhase.OPEN
    return breaker


def probed(breaker: Breaker, outcome: Outcome, now_s: float) -> Breaker:
    admitted = after_admission(as_of(breaker, RULES, now_s), now_s)
    return after_outcome(admitted, RULES, outcome, admitted.epoch, now_s)


def test_opens_at_the_threshold_and_admits_nobody() -> None:
    breaker = Breaker()
    for _ in range(RULES.failure_threshold - 1):
        breaker = after_outcome(breaker, RULES, Outcome.FAILURE, 0, 0.0)
        assert admits(breaker)
    breaker = after_outcome(breaker, RULES, Outcome.FAILURE, 0, 0.0)
    assert not admits(breaker)
    assert not admits(as_of(breaker, RULES, 0.99))


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for now_s in (0.0, 6.0, 12.0, 18.0):
        breaker = after_outcome(breaker, RULES, Outcome.FAILURE, 0, now_s)
    assert breaker.phase is BreakerPhase.CLOSED


def test_a_success_makes_up_for_one_failure() -> None:
    breaker = Breaker()
    for outcome in (Outcome.FAILURE, Outcome.SUCCESS) * 10:
        breaker = after_outcome(breaker, RULES, outcome, 0, 0.0)
    assert breaker.phase is BreakerPhase.CLOSED
    for outcome in (Outcome.FAILURE, Outcome.FAILURE, Outcome.SUCCESS) * 2:
        breaker = after_outcome(breaker, RULES, outcome, 0, 0.0)
    assert breaker.phase is BreakerPhase.OPEN, "who fails two of three is cut off"


@pytest.mark.parametrize(
    "outcome", [Outcome.OVERLOAD, Outcome.CLIENTS_FAULT, Outcome.NO_VERDICT, Outcome.SUCCESS]
)
def test_nothing_but_failures_opens(outcome: Outcome) -> None:
    breaker = Breaker()
    for _ in range(1000):
        breaker = after_outcome(breaker, RULES, outcome, 0, 0.0)
    assert breaker == Breaker()


def test_one_probe_at_a_time_and_its_success_closes() -> None:
    breaker = as_of(opened(), RULES, 1.0)
    assert breaker.phase is BreakerPhase.HALF_OPEN
    assert admits(breaker)
    probing = after_admission(breaker, 1.0)
    assert not admits(probing)
    closed = after_outcome(probing, RULES, Outcome.SUCCESS, probing.epoch, 2.0)
    assert (closed.phase, closed.failures_s) == (BreakerPhase.CLOSED, ())


def test_the_cool_down_doubles_up_to_its_bound_and_begins_anew_after_a_success() -> None:
    breaker, now_s, cool_downs = opened(), 0.0, []
    for _ in range(4):
        cool_downs.append(breaker.cool_down_s)
        now_s = breaker.may_try_s
        breaker = probed(breaker, Outcome.FAILURE, now_s)
    assert cool_downs == [1.0, 2.0, 4.0, 4.0]
    breaker = probed(breaker, Outcome.SUCCESS, breaker.may_try_s)
    assert breaker.phase is BreakerPhase.CLOSED
    for _ in range(RULES.failure_threshold):
        breaker = after_outcome(breaker, RULES, Outcome.FAILURE, breaker.epoch, now_s)
    assert breaker.cool_down_s == 1.0


@pytest.mark.parametrize("outcome", [Outcome.OVERLOAD, Outcome.CLIENTS_FAULT, Outcome.NO_VERDICT])
def test_a_probe_that_says_nothing_makes_place_for_the_next(outcome: Outcome) -> None:
    breaker = probed(opened(), outcome, 1.0)
    assert breaker.phase is BreakerPhase.HALF_OPEN
    assert admits(breaker)


def test_a_probe_that_hangs_is_given_up_and_counts_no_more() -> None:
    probing = after_admission(as_of(opened(), RULES, 1.0), 1.0)
    assert not admits(as_of(probing, RULES, 5.9))
    later = as_of(probing, RULES, 6.0)
    assert admits(later)
    assert after_outcome(later, RULES, Outcome.FAILURE, probing.epoch, 7.0) == later


def test_what_began_before_it_opened_decides_nothing() -> None:
    before = Breaker()
    half_open = as_of(opened(), RULES, 1.0)
    for outcome in Outcome:
        assert after_outcome(half_open, RULES, outcome, before.epoch, 1.0) == half_open


def test_several_successes_may_be_wanted() -> None:
    rules = BreakerRules(failure_threshold=1, success_threshold=2)
    breaker = after_outcome(Breaker(), rules, Outcome.FAILURE, 0, 0.0)
    breaker = as_of(breaker, rules, 1.0)
    for phase in (BreakerPhase.HALF_OPEN, BreakerPhase.CLOSED):
        breaker = after_admission(breaker, 1.0)
        breaker = after_outcome(breaker, rules, Outcome.SUCCESS, breaker.epoch, 1.0)
        assert breaker.phase is phase


def test_disabled_it_never_opens() -> None:
    rules, breaker = BreakerRules(is_enabled=False, failure_threshold=1), Breaker()
    for _ in range(10):
        breaker = after_outcome(breaker, rules, Outcome.FAILURE, 0, 0.0)
    assert admits(breaker)


@pytest.mark.parametrize(
    ("status", "headers", "code", "outcome"),
    [
        (200, {}, None, Outcome.SUCCESS),
        (400, {}, None, Outcome.CLIENTS_FAULT),
        (422, {}, "queue_full", Outcome.CLIENTS_FAULT),
        (429, {}, None, Outcome.OVERLOAD),
        (503, {"retry-after": "3"}, None, Outcome.OVERLOAD),
        (503, {}, "queue_full", Outcome.OVERLOAD),
        (503, {}, None, Outcome.FAILURE),
        (500, {"Retry-After": "3"}, None, Outcome.FAILURE),
        (502, {}, None, Outcome.FAILURE),
    ],
)
def test_what_a_status_says_of_the_worker(
    status: int, headers: Mapping[str, str], code: str | None, outcome: Outcome
) -> None:
    assert outcome_of_status(status, headers, code) is outcome


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.integers(0, 2)),
            st.tuples(st.sampled_from(Outcome), st.integers(0, 9)),
            st.tuples(st.just("wait"), st.integers(0, 7)),
            st.tuples(st.just("reset"), st.integers(0, 2)),
        ),
        max_size=120,
    )
)
def test_any_history_moves_only_along_the_table(
    history: list[tuple[str | Outcome, int]],
) -> None:
    told: dict[str, bool] = {}
    moves: list[tuple[str, BreakerPhase]] = []
    breakers = Breakers(RULES, told.__setitem__, lambda id_, phase: moves.append((id_, phase)))
    phases = {}
    for i in range(3):
        breakers.add(f"w{i}")
        told[f"w{i}"] = True
        phases[f"w{i}"] = BreakerPhase.CLOSED
    running: list[tuple[str, int]] = []
    now_s = 0.0
    for what, number in history:
        if what == "wait":
            now_s += number / 2
        elif what == "admit":
            breakers.catch_up(now_s)
            worker_id = f"w{number}"
            is_admitted = breakers.admits(worker_id)
            epoch = breakers.admit(worker_id, now_s)
            assert (epoch >= 0) == is_admitted
            if phases[worker_id] is BreakerPhase.HALF_OPEN:
                assert not breakers.admits(worker_id), "one probe at a time"
            running.append((worker_id, epoch))
        elif what == "reset":
            breakers.reset(f"w{number}")
            phases[f"w{number}"] = BreakerPhase.CLOSED
            moves.clear()
        elif running:
            worker_id, epoch = running.pop(number % len(running))
            assert isinstance(what, Outcome)
            breakers.report(worker_id, epoch, what, now_s)
        for worker_id, phase in moves:
            assert phase in LEGAL_MOVES[phases[worker_id]]
            phases[worker_id] = phase
        moves.clear()
        breakers.check_invariants()
        assert told == {f"w{i}": breakers.admits(f"w{i}") for i in range(3)}
    breakers.catch_up(now_s + 1000)
    assert all(breakers.admits(f"w{i}") for i in range(3)), "nobody is cut off for ever"


def test_time_is_noticed_and_the_wait_is_known() -> None:
    breakers = Breakers(RULES, lambda _id, _is_admitted: None)
    breakers.add("w")
    for _ in range(RULES.failure_threshold):
        breakers.report("w", breakers.admit("w", 0.0), Outcome.FAILURE, 0.0)
    assert breakers.soonest_try_s(["w"], 0.25) == 0.75
    breakers.catch_up(0.5)
    assert not breakers.admits("w")
    breakers.catch_up(1.0)
    assert breakers.admits("w")
    breakers.remove("w")
    breakers.report("w", 0, Outcome.FAILURE, 1.0)  # its worker left: nobody to blame
