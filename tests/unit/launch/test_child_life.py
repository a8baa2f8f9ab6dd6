"""Restart decisions on a clock that the test moves."""

import pytest

from baton.launch.child_life import Backoff, ChildLife, GiveUp, Phase, Restart


def _serving(life: ChildLife, now_s: float) -> None:
    life.on_started()
    life.on_ready(now_s=now_s)


def test_a_process_that_never_served_is_given_up() -> None:
    life = ChildLife()
    life.on_started()
    assert life.on_exit(now_s=1.0) == GiveUp()
    assert life.phase is Phase.GIVEN_UP


def test_delays_double_up_to_the_most() -> None:
    life = ChildLife(Backoff(first_s=0.5, most_s=10.0, reset_after_s=60.0))
    delays = []
    for _ in range(7):
        _serving(life, now_s=0.0)
        decision = life.on_exit(now_s=1.0)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_long_service_resets_the_delay() -> None:
    life = ChildLife()
    _serving(life, now_s=0.0)
    assert life.on_exit(now_s=1.0) == Restart(0.5)
    _serving(life, now_s=2.0)
    assert life.on_exit(now_s=61.9) == Restart(1.0)
    _serving(life, now_s=70.0)
    assert life.on_exit(now_s=130.0) == Restart(0.5)
    _serving(life, now_s=131.0)
    assert life.on_exit(now_s=132.0) == Restart(1.0)


def test_a_failed_restart_is_tried_again() -> None:
    life = ChildLife()
    _serving(life, now_s=0.0)
    assert life.on_exit(now_s=100.0) == Restart(0.5)
    life.on_started()
    assert life.on_exit(now_s=500.0) == Restart(1.0), "time spent starting is no service"
    assert life.phase is Phase.PENDING


def test_illegal_moves_are_bugs() -> None:
    life = ChildLife()
    with pytest.raises(AssertionError, match="pending -> ready"):
        life.on_ready(now_s=0.0)
