from baton.core.clock import FakeClock
from baton.ipc.heartbeat import HeartbeatMonitor


def test_silence_of_max_missed_intervals_is_a_loss() -> None:
    clock = FakeClock(100.0)
    monitor = HeartbeatMonitor(1.0, 3, clock.now_s())
    for _ in range(3):
        clock.advance(1.0)
        assert not monitor.check_lost(clock.now_s())
    clock.advance(1.0)
    assert monitor.check_lost(clock.now_s())


def test_any_word_starts_the_count_anew() -> None:
    clock = FakeClock()
    monitor = HeartbeatMonitor(1.0, 3, clock.now_s())
    for _ in range(20):
        clock.advance(1.0)
        monitor.heard(clock.now_s())
        assert not monitor.check_lost(clock.now_s())


def test_time_in_which_this_side_did_not_look_is_not_held_against_the_peer() -> None:
    clock = FakeClock()
    monitor = HeartbeatMonitor(1.0, 3, clock.now_s())
    clock.advance(1.0)
    assert not monitor.check_lost(clock.now_s())
    clock.advance(60.0)  # this process was stopped
    assert not monitor.check_lost(clock.now_s())
    clock.advance(1.0)
    assert not monitor.check_lost(clock.now_s())
    clock.advance(1.0)
    assert monitor.check_lost(clock.now_s())


def test_slightly_late_checks_count_in_full() -> None:
    clock = FakeClock()
    monitor = HeartbeatMonitor(1.0, 3, clock.now_s())
    clock.advance(1.9)
    assert not monitor.check_lost(clock.now_s())
    clock.advance(1.9)
    assert monitor.check_lost(clock.now_s())
