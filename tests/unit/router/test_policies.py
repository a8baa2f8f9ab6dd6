"""Policies: fair where they promise it, and never out of the candidates."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from baton.router.config import HealthRules, WorkerRole, WorkerSpec
from baton.router.policies import Candidate, PolicyName, choose
from baton.router.workers import Worker, WorkerPool

candidates = st.lists(
    st.builds(
        Candidate,
        worker_id=st.uuids().map(str),
        num_in_flight=st.integers(0, 9),
        num_foreign=st.integers(0, 9),
        num_tokens=st.integers(0, 999),
        last_dispatch=st.integers(0, 99),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda c: c.worker_id,
)
draws = st.floats(0, 1, exclude_max=True)


def make_pool(num: int) -> WorkerPool:
    pool = WorkerPool(HealthRules(), lambda _: None)
    for i in range(num):
        worker = pool.add(f"w{i}", WorkerSpec(f"http://h:{i + 1}", WorkerRole.DECODE), 0.0)
        pool.note_success(worker, 0.0)
    return pool


def pick(pool: WorkerPool, policy: PolicyName, draw: float = 0.0) -> Worker:
    workers = pool.healthy(WorkerRole.DECODE)
    chosen = choose(policy, [w.as_candidate() for w in workers], draw=draw)
    worker = pool.get(chosen.worker_id)
    assert worker is not None
    return worker


@given(candidates, st.sampled_from(PolicyName), draws)
def test_chooses_a_candidate_and_repeats_itself(
    given_candidates: list[Candidate], policy: PolicyName, draw: float
) -> None:
    chosen = choose(policy, given_candidates, draw=draw)
    assert chosen in given_candidates
    assert chosen == choose(policy, given_candidates, draw=draw)


@given(candidates, draws)
def test_least_loaded_takes_the_least(given_candidates: list[Candidate], draw: float) -> None:
    chosen = choose(PolicyName.LEAST_LOADED, given_candidates, draw=draw)
    assert all(
        chosen.num_in_flight + chosen.num_foreign <= c.num_in_flight + c.num_foreign
        for c in given_candidates
    )


@given(st.integers(1, 6), st.integers(1, 60), st.booleans())
def test_round_robin_never_favours_anyone(num: int, num_requests: int, ends_at_once: bool) -> None:
    pool, counts = make_pool(num), Counter({f"w{i}": 0 for i in range(num)})
    for _ in range(num_requests):
        worker = pick(pool, PolicyName.ROUND_ROBIN)
        pool.begin(worker)
        counts[worker.id] += 1
        if ends_at_once:
            pool.end(worker)
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(2, 6), st.integers(1, 60))
def test_round_robin_goes_on_fairly_after_one_was_away(num: int, num_requests: int) -> None:
    pool = make_pool(num)
    away = pool.healthy(WorkerRole.DECODE)[0]
    pool.note_refusal(away, "gone", 1.0)
    for _ in range(num_requests):
        worker = pick(pool, PolicyName.ROUND_ROBIN)
        assert worker is not away
        pool.begin(worker)
    pool.note_success(away, 2.0)
    assert pick(pool, PolicyName.ROUND_ROBIN) is away


@given(st.integers(1, 6), st.integers(0, 40))
def test_least_loaded_keeps_counts_within_one_while_only_adding(
    num: int, num_requests: int
) -> None:
    pool = make_pool(num)
    for _ in range(num_requests):
        pool.begin(pick(pool, PolicyName.LEAST_LOADED))
    counts = [w.num_in_flight for w in pool]
    assert max(counts) - min(counts) <= 1


def test_least_loaded_does_not_herd_on_idle_workers() -> None:
    pool = make_pool(3)
    used = []
    for _ in range(6):
        worker = pick(pool, PolicyName.LEAST_LOADED)
        used.append(worker.id)
        pool.begin(worker)
        pool.end(worker)
    assert used == ["w0", "w1", "w2", "w0", "w1", "w2"]


def test_least_loaded_sees_requests_of_others_but_counts_its_own_once() -> None:
    pool = make_pool(2)
    busy, idle = pool.healthy(WorkerRole.DECODE)
    pool.begin(idle)
    pool.note_load(busy, num_requests=4, num_tokens=0, now_s=1.0)
    pool.note_load(idle, num_requests=1, num_tokens=0, now_s=1.0)
    assert pick(pool, PolicyName.LEAST_LOADED) is idle


def test_least_loaded_breaks_ties_by_reported_tokens() -> None:
    pool = make_pool(2)
    full, empty = pool.healthy(WorkerRole.DECODE)
    pool.note_load(full, num_requests=None, num_tokens=500, now_s=1.0)
    pool.note_load(empty, num_requests=None, num_tokens=10, now_s=1.0)
    assert pick(pool, PolicyName.LEAST_LOADED) is empty


@given(st.integers(1, 6), draws)
def test_random_follows_its_draw(num: int, draw: float) -> None:
    pool = make_pool(num)
    assert pick(pool, PolicyName.RANDOM, draw).id == f"w{int(draw * num)}"
