"""Worker states: the table of moves, the thresholds, and the count of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.config import HealthRules, WorkerRole, WorkerSpec
from baton.router.workers import (
    LEGAL_MOVES,
    Drainer,
    Health,
    Phase,
    Worker,
    WorkerFacts,
    WorkerPool,
    after_failure,
    after_refusal,
    after_success,
)

RULES = HealthRules(failure_threshold=2, success_threshold=1)


def fresh(url: str = "http://127.0.0.1:30001", port: int | None = None) -> WorkerPool:
    pool = WorkerPool(RULES, lambda _: None)
    pool.add("w", WorkerSpec(url, WorkerRole.PREFILL, port), 0.0)
    return pool


def test_one_success_makes_a_starting_worker_healthy() -> None:
    health = after_success(Health(since_s=0.0), RULES, 3.0)
    assert (health.phase, health.since_s, health.reason) == (Phase.HEALTHY, 3.0, "")


def test_two_failures_in_a_row_make_a_worker_unhealthy() -> None:
    health = after_success(Health(since_s=0.0), RULES, 1.0)
    health = after_failure(health, RULES, "slow", 2.0)
    assert health.phase is Phase.HEALTHY
    health = after_success(health, RULES, 3.0)
    health = after_failure(after_failure(health, RULES, "slow", 4.0), RULES, "slow", 5.0)
    assert (health.phase, health.since_s, health.reason) == (Phase.UNHEALTHY, 5.0, "slow")


def test_a_refusal_is_enough() -> None:
    health = after_refusal(after_success(Health(since_s=0.0), RULES, 1.0), "refused", 2.0)
    assert (health.phase, health.reason) == (Phase.UNHEALTHY, "refused")


def test_success_threshold_counts_successes_in_a_row() -> None:
    rules = HealthRules(success_threshold=2)
    health = after_refusal(Health(since_s=0.0), "refused", 0.0)
    health = after_success(health, rules, 1.0)
    assert health.phase is Phase.UNHEALTHY
    health = after_success(after_failure(health, rules, "x", 2.0), rules, 3.0)
    assert health.phase is Phase.UNHEALTHY
    assert after_success(health, rules, 4.0).phase is Phase.HEALTHY


@given(
    st.lists(st.sampled_from(["success", "failure", "refusal", "begin", "end"]), max_size=60),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_any_history_moves_only_along_the_table(
    history: list[str], failure_threshold: int, success_threshold: int
) -> None:
    rules = HealthRules(failure_threshold=failure_threshold, success_threshold=success_threshold)
    pool = WorkerPool(rules, lambda _: None)
    worker = pool.add("w", WorkerSpec("http://h:1", WorkerRole.DECODE), 0.0)
    num_in_flight = 0
    for now_s, happened in enumerate(history):
        before = worker.health.phase
        match happened:
            case "success":
                pool.note_success(worker, now_s)
            case "failure":
                pool.note_failure(worker, "x", now_s)
            case "refusal":
                pool.note_refusal(worker, "x", now_s)
            case "begin":
                pool.begin(worker)
                num_in_flight += 1
            case "end" if num_in_flight:
                pool.end(worker)
                num_in_flight -= 1
        assert worker.health.phase is before or worker.health.phase in LEGAL_MOVES[before]
        assert worker.num_in_flight == num_in_flight
        assert (worker in pool.available(WorkerRole.DECODE)) == worker.is_healthy
        pool.check_invariants()


def test_what_is_learnt_of_a_worker_that_has_left_is_told_to_nobody() -> None:
    told: list[Worker] = []
    pool = WorkerPool(HealthRules(), told.append)
    worker = pool.add("w", WorkerSpec("http://h:1", WorkerRole.DECODE), 0.0)
    pool.note_success(worker, 1.0)
    pool.remove("w")
    assert told == [worker] * 3
    pool.note_refusal(worker, "nobody listens", 2.0)
    pool.note_drain(worker, Drainer.ANNOUNCEMENT, True)
    pool.note_facts(worker, WorkerFacts(pid=1))
    assert told == [worker] * 3


def test_ending_more_than_was_begun_is_a_bug() -> None:
    pool = fresh()
    worker = pool.get("w")
    assert worker is not None
    with pytest.raises(AssertionError, match="no request to end"):
        pool.end(worker)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:30001", "127.0.0.1"),
        ("http://gpu-7.cluster.local:80", "gpu-7.cluster.local"),
        ("https://[fd00::7]:30001", "[fd00::7]"),
    ],
)
def test_bootstrap_host_is_the_urls(url: str, host: str) -> None:
    worker = fresh(url).get("w")
    assert worker is not None
    assert worker.bootstrap_host == host


@pytest.mark.parametrize(
    ("given_port", "said_port", "used_port"), [(9000, 9001, 9000), (None, 9001, 9001), (None,) * 3]
)
def test_bootstrap_port_is_the_operators_then_the_workers(
    given_port: int | None, said_port: int | None, used_port: int | None
) -> None:
    pool = fresh(port=given_port)
    worker = pool.get("w")
    assert worker is not None
    pool.note_facts(worker, WorkerFacts(bootstrap_port=said_port))
    assert worker.bootstrap_port == used_port


@pytest.mark.parametrize(
    ("url", "pid"),
    [("http://127.0.0.1:1", 77), ("http://localhost:1", 77), ("http://10.0.0.7:1", None)],
)
def test_pid_is_told_only_of_local_workers(url: str, pid: int | None) -> None:
    pool = fresh(url)
    worker = pool.get("w")
    assert worker is not None
    assert worker.local_pid is None
    pool.note_facts(worker, WorkerFacts(pid=77))
    assert worker.local_pid == pid
