"""What the router knows of its workers, and how that knowledge changes.

    STARTING ──success──> HEALTHY ──failures or refusal──> UNHEALTHY ──success──> HEALTHY
        └──────────────────failures or refusal───────────────^

A worker drains while anybody says so (`Drainer`), whatever its health: it finishes what runs there.
Invariant: for every worker num_in_flight >= 0 and equals begun minus ended requests; only
HEALTHY workers that do not drain are candidates.
Elsewhere: asking workers how they are (health.py), what they announce (announcements.py), choosing
among them (placement.py).
"""

import enum
import ipaddress
from collections.abc import Callable, Collection, Iterator

import msgspec

from baton.router.config import HealthRules, WorkerRole, WorkerSpec
from baton.router.http.origin import origin_of


class Phase(enum.StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Drainer(enum.StrEnum):
    """Who wants a worker to take nothing new. One does not take back what another said."""

    OPERATOR = "operator"
    CONFIGURATION = "configuration"
    ANNOUNCEMENT = "announcement"
    HEALTH = "health"


LEGAL_MOVES = {
    Phase.STARTING: {Phase.HEALTHY, Phase.UNHEALTHY},
    Phase.HEALTHY: {Phase.UNHEALTHY},
    Phase.UNHEALTHY: {Phase.HEALTHY},
}


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`num_successes` and `num_failures` are consecutive: one is always 0. `reason` says why a
    worker is not healthy."""

    phase: Phase = Phase.STARTING
    since_s: float
    num_successes: int = 0
    num_failures: int = 0
    reason: str = "not probed yet"


def after_success(health: Health, rules: HealthRules, now_s: float) -> Health:
    num_successes = health.num_successes + 1
    counted = msgspec.structs.replace(health, num_successes=num_successes, num_failures=0)
    if health.phase is Phase.HEALTHY or num_successes < rules.success_threshold:
        return counted
    return _moved(counted, Phase.HEALTHY, "", now_s)


def after_failure(health: Health, rules: HealthRules, reason: str, now_s: float) -> Health:
    num_failures = health.num_failures + 1
    counted = msgspec.structs.replace(health, num_successes=0, num_failures=num_failures)
    if health.phase is Phase.UNHEALTHY:
        return msgspec.structs.replace(counted, reason=reason)
    if num_failures < rules.failure_threshold:
        return counted
    return _moved(counted, Phase.UNHEALTHY, reason, now_s)


def after_refusal(health: Health, reason: str, now_s: float) -> Health:
    """Nobody listens at the address: certain enough to act on at once."""
    counted = msgspec.structs.replace(
        health, num_successes=0, num_failures=health.num_failures + 1, reason=reason
    )
    if health.phase is Phase.UNHEALTHY:
        return counted
    return _moved(counted, Phase.UNHEALTHY, reason, now_s)


def _moved(health: Health, phase: Phase, reason: str, now_s: float) -> Health:
    assert phase in LEGAL_MOVES[health.phase], f"{health.phase} to {phase}"
    return msgspec.structs.replace(health, phase=phase, since_s=now_s, reason=reason)


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself. `metadata` keeps the names and texts of SGLang's router.
    `takes_whole_requests`: a decode worker that serves without a prefill worker, too, since one
    would have no other cores."""

    model_id: str = "unknown"
    pid: int | None = None
    bootstrap_port: int | None = None
    takes_whole_requests: bool = False
    metadata: dict[str, str] = {}


class ReportedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """`num_requests` is None where a worker reports only tokens."""

    num_requests: int | None
    num_tokens: int
    at_s: float


class WorkerNotes(msgspec.Struct, frozen=True, kw_only=True):
    """What operators note down of a worker, as in SGLang's router, whose policies do not read it
    either; shown with the worker, for programs of theirs."""

    priority: int = 50
    cost: float = 1.0
    labels: dict[str, str] = {}


class Worker:
    """One worker's record. Changed by WorkerPool only."""

    def __init__(
        self, worker_id: str, spec: WorkerSpec, now_s: float, *, is_announced: bool = False
    ):
        self.id = worker_id
        self.spec = spec
        self.is_announced = is_announced
        """It came by itself, and goes when it falls silent; the operator's stay and are probed."""
        self.origin = origin_of(spec.url)
        host = self.origin.host
        self.bootstrap_host = f"[{host}]" if ":" in host else host
        """Host of the URL; IPv6 keeps its brackets, as it is joined with a port by the worker."""
        self.added_s = now_s
        self.health = Health(since_s=now_s)
        self.facts: WorkerFacts | None = None
        self.load: ReportedLoad | None = None
        self.notes = WorkerNotes()
        self.num_in_flight = 0
        self.drainers: frozenset[Drainer] = frozenset()

    @property
    def url(self) -> str:
        return self.spec.url

    @property
    def role(self) -> WorkerRole:
        return self.spec.role

    @property
    def is_healthy(self) -> bool:
        return self.health.phase is Phase.HEALTHY

    @property
    def is_draining(self) -> bool:
        return bool(self.drainers)

    @property
    def is_available(self) -> bool:
        """Whether it may get new requests, as far as health and drains go."""
        return self.is_healthy and not self.drainers

    @property
    def takes_whole_requests(self) -> bool:
        """Of a decode worker: whether it says that it needs no prefill worker."""
        return self.facts is not None and self.facts.takes_whole_requests

    @property
    def bootstrap_port(self) -> int | None:
        if self.spec.bootstrap_port is not None or self.facts is None:
            return self.spec.bootstrap_port
        return self.facts.bootstrap_port

    @property
    def local_pid(self) -> int | None:
        """Process id, if the worker runs on this host: elsewhere the number means nothing."""
        if self.facts is None or not _is_loopback(self.origin.host):
            return None
        return self.facts.pid


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class WorkerPool:
    """All workers, by id. `on_change` is called after a worker joined, left, changed phase, began
    or ceased to drain, or told something new of itself; `on_load` after it told its load."""

    def __init__(
        self,
        rules: HealthRules,
        on_change: Callable[[Worker], None],
        on_load: Callable[[Worker], None] = lambda _worker: None,
    ):
        self.rules = rules
        self._on_change = on_change
        self._on_load = on_load
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> Worker | None:
        return self._workers.get(worker_id)

    def find(self, url: str) -> Worker | None:
        return next((w for w in self._workers.values() if w.url == url), None)

    def of_role(self, role: WorkerRole) -> list[Worker]:
        return [w for w in self._workers.values() if w.role is role]

    def available(self, role: WorkerRole, without: Collection[str] = ()) -> list[Worker]:
        return [w for w in self.of_role(role) if w.is_available and w.id not in without]

    def add(
        self, worker_id: str, spec: WorkerSpec, now_s: float, *, is_announced: bool = False
    ) -> Worker:
        assert worker_id not in self._workers
        worker = Worker(worker_id, spec, now_s, is_announced=is_announced)
        self._workers[worker_id] = worker
        self._on_change(worker)
        return worker

    def remove(self, worker_id: str) -> None:
        """Requests that run there end by themselves; no new one goes there."""
        self._on_change(self._workers.pop(worker_id))

    def begin(self, worker: Worker) -> None:
        """A request goes to this worker; `end` must follow exactly once."""
        worker.num_in_flight += 1

    def end(self, worker: Worker) -> None:
        assert worker.num_in_flight > 0, f"{worker.url} has no request to end"
        worker.num_in_flight -= 1

    def note_success(self, worker: Worker, now_s: float) -> None:
        self._set_health(worker, after_success(worker.health, self.rules, now_s))

    def note_failure(self, worker: Worker, reason: str, now_s: float) -> None:
        self._set_health(worker, after_failure(worker.health, self.rules, reason, now_s))

    def note_refusal(self, worker: Worker, reason: str, now_s: float) -> None:
        self._set_health(worker, after_refusal(worker.health, reason, now_s))

    def note_drain(self, worker: Worker, drainer: Drainer, is_wanted: bool) -> None:
        """Saying the same again changes nothing."""
        drainers = worker.drainers | {drainer} if is_wanted else worker.drainers - {drainer}
        if drainers != worker.drainers:
            worker.drainers = drainers
            self._tell_change(worker)

    def note_down(self, worker: Worker, notes: WorkerNotes) -> None:
        worker.notes = notes

    def note_facts(self, worker: Worker, facts: WorkerFacts) -> None:
        if facts != worker.facts:
            worker.facts = facts
            self._tell_change(worker)

    def note_load(
        self, worker: Worker, num_requests: int | None, num_tokens: int, now_s: float
    ) -> None:
        worker.load = ReportedLoad(num_requests=num_requests, num_tokens=num_tokens, at_s=now_s)
        self._on_load(worker)

    def _set_health(self, worker: Worker, health: Health) -> None:
        moved = health.phase is not worker.health.phase
        worker.health = health
        if moved:
            if health.phase is Phase.UNHEALTHY:
                worker.load = None
            self._tell_change(worker)

    def _tell_change(self, worker: Worker) -> None:
        """Of one that has left, a leg may still learn that nobody listens there any more."""
        if self._workers.get(worker.id) is worker:
            self._on_change(worker)

    def check_invariants(self) -> None:
        for worker in self._workers.values():
            assert worker.num_in_flight >= 0
            health = worker.health
            assert health.num_failures == 0 or health.num_successes == 0
            assert (health.phase is Phase.HEALTHY) == (health.reason == "")
