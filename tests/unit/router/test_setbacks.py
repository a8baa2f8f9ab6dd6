"""Whether a worker that failed a request may have it again."""

from baton.router.config import HealthRules, WorkerRole, WorkerSpec
from baton.router.setbacks import Setbacks
from baton.router.workers import Worker, WorkerFacts, WorkerPool


def pool_of(*roles: WorkerRole) -> tuple[WorkerPool, list[Worker]]:
    pool = WorkerPool(HealthRules(), lambda _worker: None)
    workers = []
    for number, role in enumerate(roles):
        worker = pool.add(str(number), WorkerSpec(f"http://127.0.0.1:{number + 1}", role), 0.0)
        pool.note_facts(worker, WorkerFacts(pid=100 + number))
        pool.note_success(worker, 0.0)
        workers.append(worker)
    return pool, workers


def shunned(pool: WorkerPool, setbacks: Setbacks) -> set[str]:
    return set(setbacks.shunned(lambda role, tried: bool(pool.available(role, tried))))


def test_others_are_asked_first() -> None:
    pool, (first, second) = pool_of(WorkerRole.DECODE, WorkerRole.DECODE)
    setbacks = Setbacks()
    setbacks.note(first)
    pool.note_success(first, 1.0)
    assert shunned(pool, setbacks) == {first.id}
    setbacks.note(second)
    assert shunned(pool, setbacks) == {second.id}


def test_the_only_one_must_have_answered_since() -> None:
    pool, (prefill, decode) = pool_of(WorkerRole.PREFILL, WorkerRole.DECODE)
    setbacks = Setbacks()
    setbacks.note(decode)
    assert shunned(pool, setbacks) == {decode.id}
    pool.note_failure(decode, "slow", 1.0)
    pool.note_success(prefill, 1.0)
    pool.note_refusal(decode, "gone", 2.0)
    assert shunned(pool, setbacks) == {decode.id}
    pool.note_success(decode, 3.0)
    assert shunned(pool, setbacks) == set()


def test_another_process_has_failed_nobody_yet() -> None:
    pool, (first, _second) = pool_of(WorkerRole.DECODE, WorkerRole.DECODE)
    setbacks = Setbacks()
    setbacks.note(first)
    pool.note_refusal(first, "gone", 1.0)
    pool.note_facts(first, WorkerFacts(pid=200))
    assert shunned(pool, setbacks) == {first.id}
    pool.note_success(first, 2.0)
    assert shunned(pool, setbacks) == set()
