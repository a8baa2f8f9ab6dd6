"""The workers as one thing: pick one, count what runs there, and act on what went wrong.

Invariant: a leg is counted at its worker from `leg_began` to `leg_ended`, however it ends.
Elsewhere: transitions (workers.py), choosing (placement.py), probing (health.py), legs (legs.py).
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable, Collection, Coroutine, Iterator

from baton.core.clock import Clock
from baton.core.request import MAX_BOOTSTRAP_ROOM
from baton.obs.logs import EventLog
from baton.router.admission import Admission
from baton.router.breaker import SUCCESS, Outcome
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.errors import LegBroken, LegFailure, LegRefused, LegRejected, NoWorker, stage_of
from baton.router.health import HealthMonitor, log_drain, log_move
from baton.router.legs import Leg, PrefillLeg
from baton.router.metrics import RouterMetrics
from baton.router.placement import Placement, Visit
from baton.router.plan import Plan
from baton.router.policies import UNKNOWN_REQUEST, RoutedRequest
from baton.router.workers import Drainer, Phase, Worker, WorkerPool

_log = EventLog("baton.router")
_PREFILL, _DECODE = WorkerRole.PREFILL, WorkerRole.DECODE
_ROOM_BITS = MAX_BOOTSTRAP_ROOM.bit_length()

FLEET_FIELDS = (
    *("policy", "prefill_policy", "decode_policy", "split", "breaker", "health"),
    *("cache.threshold", "cache.balance_abs", "cache.balance_rel"),
    *("waiting.max_running", "waiting.max_waiting", "waiting.max_wait_s"),
)
"""Of the configuration, what `follow` can change."""


class Fleet:
    """`monitor` is given once the event loop runs (`attach`). `give_up_on` is told of a worker that
    became unhealthy while others can take over."""

    def __init__(self, config: RouterConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._random = random.Random(config.seed)
        self._changed = asyncio.Event()
        self._watchers: set[Callable[[], None]] = set()
        self._monitor: HealthMonitor | None = None
        self.give_up_on: Callable[[Worker], None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self.pool = WorkerPool(config.health, self._note_change, self._note_load)
        self.metrics = RouterMetrics(self.pool)
        self.placement = Placement(config, self.metrics)
        self.admission = Admission(config.waiting, self.metrics, clock)
        self.metrics.watch_breakers(lambda id_: self.placement.breakers.of(id_).phase)

    def attach(self, monitor: HealthMonitor) -> None:
        """Start to watch: the workers of the configuration join now."""
        self._monitor = monitor
        for spec in self._config.workers:
            self.join(spec)

    def join(self, spec: WorkerSpec, *, is_announced: bool = False) -> Worker:
        """Add a worker; it is used as soon as it says that it is healthy."""
        assert self._monitor is not None
        id_, now_s = str(uuid.uuid4()), self._clock.now_s()
        worker = self.pool.add(id_, spec, now_s, is_announced=is_announced)
        self._monitor.watch(worker)
        return worker

    def drain(self, worker: Worker, drainer: Drainer, is_wanted: bool = True) -> None:
        """It takes nothing new and finishes what it has, as long as anybody wants that."""
        was_draining = worker.is_draining
        self.pool.note_drain(worker, drainer, is_wanted)
        if worker.is_draining != was_draining:
            log_drain(worker)

    def retire(self, worker: Worker) -> None:
        """Drain a worker that the configuration no longer names, and forget it afterwards."""
        self.drain(worker, Drainer.CONFIGURATION)
        self.spawn(self._leave_when_idle(worker))

    async def _leave_when_idle(self, worker: Worker) -> None:
        """Unless the configuration names it again."""
        await self.until(
            lambda _: worker.num_in_flight == 0 or Drainer.CONFIGURATION not in worker.drainers
        )
        if Drainer.CONFIGURATION in worker.drainers:
            await self.leave(worker)

    def forget(self, worker: Worker) -> None:
        """As `leave`, without waiting for its probes to end."""
        assert self._monitor is not None
        self.pool.remove(worker.id)
        self.spawn(self._monitor.forget(worker.id))

    async def leave(self, worker: Worker) -> None:
        """Remove a worker, unless it is gone already; what runs there runs on."""
        assert self._monitor is not None
        if self.pool.get(worker.id) is None:
            return
        self.pool.remove(worker.id)
        await self._monitor.forget(worker.id)

    def spawn(self, chore: Coroutine[None, None, None]) -> None:
        """Let something go on beside; it ends at the latest with the fleet."""
        task = asyncio.get_running_loop().create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def close(self) -> None:
        for chore in (chores := tuple(self._chores)):
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        if self._monitor is not None:
            await self._monitor.close()

    async def until(self, is_so: Callable[[WorkerPool], bool]) -> None:
        """Wait until the workers are in a state that `is_so`."""
        while not is_so(self.pool):
            self._changed.clear()
            await self._changed.wait()

    @contextlib.contextmanager
    def watching(self, poke: Callable[[], None], limit_s: float) -> Iterator[Callable[[], bool]]:
        """Call `poke` whenever a worker has changed, and as often as health checks are made, of
        which some change nothing but a count. Gives a question: is the limit over?"""
        loop = asyncio.get_running_loop()
        due_s, interval_s = loop.time() + limit_s, self._config.health.interval_s
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            timer = loop.call_at(min(due_s, loop.time() + interval_s), look)
            poke()

        look()
        self._watchers.add(poke)
        try:
            yield lambda: loop.time() >= due_s
        finally:
            self._watchers.discard(poke)
            assert timer is not None
            timer.cancel()

    def missing_roles(self) -> list[WorkerRole]:
        """Roles without which no request can be served now."""
        if self.pool.available(WorkerRole.REGULAR) or self._decodes_whole():
            return []
        return [role for role in self._config.roles if not self.pool.available(role)]

    def plan(self, request: RoutedRequest = UNKNOWN_REQUEST, tried: Collection[str] = ()) -> Plan:
        """Whom to send a request to: one worker, or prefill and decode; raises NoWorker."""
        now_s = self._clock.now_s()
        plan = self.placement.plan(request, tried, now_s)
        if plan is not None:
            return plan
        usable = self.placement.has_usable
        role = next(role for role in self._config.roles if not usable(role, tried))
        num_cut_off, retry_after_s = self.placement.cut_off(role, now_s)
        raise NoWorker(role, len(self.pool.of_role(role)), num_cut_off, retry_after_s)

    def can_plan(self, tried: Collection[str]) -> bool:
        """Whether `plan` would find workers."""
        self.placement.breakers.catch_up(self._clock.now_s())
        placement = self.placement
        return placement.can_serve_whole(tried) or all(
            placement.has_usable(role, tried) for role in self._config.roles
        )

    def _decodes_whole(self) -> bool:
        return any(worker.takes_whole_requests for worker in self.pool.available(_DECODE))

    def follow(self, config: RouterConfig) -> None:
        """Policies, limits and rules are these from now on."""
        self._config = config
        self.pool.rules = config.health
        self.placement.follow_config(config)
        self.admission.follow(config.waiting)
        if self._monitor is not None:
            self._monitor.rules = config.health

    def draw_room(self) -> int:
        """A room number in [0, 2^63), new for every attempt."""
        return self._random.getrandbits(_ROOM_BITS)

    def leg_began(self, leg: Leg) -> None:
        """A request is sent to its worker."""
        self.pool.begin(leg.worker)
        now_s = self._clock.now_s()
        leg.visit = self.placement.begin(leg.worker, leg.request, now_s, leg.is_alone)

    def leg_ended(self, leg: Leg) -> None:
        """How it ended is what the worker's breaker is told."""
        visit, outcome, now_s = leg.visit, _outcome_of(leg), self._clock.now_s()
        if outcome is SUCCESS and visit.role is _PREFILL:
            self._note_prefilled(leg, now_s)
        self.pool.end(leg.worker)
        self.placement.end(visit, outcome, now_s)
        self._changed.set()

    def _note_prefilled(self, leg: Leg, now_s: float) -> None:
        transfer = None
        if self.placement.needs_speeds and isinstance(leg, PrefillLeg):
            transfer = leg.transfer
            if transfer is not None and self.pool.get(leg.decode_id) is not None:
                self.placement.note_transfer(leg.visit, leg.decode_id, transfer)
        self.placement.note_computed(leg.visit, now_s, transfer.seconds if transfer else 0.0)

    def note_first_byte(self, visit: Visit) -> None:
        """A stream has begun: its prompt is computed, and decode has taken over."""
        now_s = self._clock.now_s()
        self.placement.note_answering(visit, now_s)
        if visit.role is _DECODE and not visit.is_alone:
            self.placement.note_taken_over(visit, now_s)
        else:
            self.placement.note_computed(visit, now_s)

    def has_another(self, worker: Worker) -> bool:
        """Whether its work could be done elsewhere."""
        return self.placement.has_usable(worker.role, (worker.id,))

    def note_failure(self, failure: LegFailure) -> None:
        """A leg failed: blame that worker, and only for what is its fault. The request's own line
        in the log is written where the request ends."""
        worker = failure.worker
        if isinstance(failure, LegRejected) and failure.is_clients_fault:
            return
        self.metrics.leg_failures.labels(stage_of(worker.role), failure.kind).inc()
        _log.info(
            "leg failed",
            stage=stage_of(worker.role),
            kind=failure.kind,
            worker=worker.url,
            reason=failure.problem.message,
        )
        match failure:
            case LegRefused():
                was_healthy = worker.is_healthy
                self.pool.note_refusal(worker, failure.problem.message, self._clock.now_s())
                if was_healthy:
                    log_move(worker)
                self.doubt(worker)
            case LegBroken():
                self.doubt(worker)

    def note_silence(self, worker: Worker) -> None:
        """None of its streams moves, though its connections stand."""
        assert self._monitor is not None
        self._monitor.suspect(worker)

    def doubt(self, worker: Worker) -> None:
        """Ask it now how it is, and what it is."""
        assert self._monitor is not None
        self._monitor.doubt(worker)

    def _note_change(self, worker: Worker) -> None:
        self.placement.follow(worker, is_known=self.pool.get(worker.id) is worker)
        self._changed.set()
        for poke in tuple(self._watchers):
            poke()
        if self.give_up_on is not None:
            for lost in self._lost_beside(worker):
                asyncio.get_running_loop().call_soon(self.give_up_on, lost)

    def _lost_beside(self, changed: Worker) -> list[Worker]:
        """Workers that do not answer any more, now that they do not, or that others have come."""
        if changed.health.phase is Phase.UNHEALTHY:
            return [changed] if self.has_another(changed) else []
        if not changed.is_healthy or not self.placement.has_usable(changed.role):
            return []
        return [
            worker
            for worker in self.pool.of_role(changed.role)
            if worker.health.phase is Phase.UNHEALTHY and worker.num_in_flight
        ]

    def _note_load(self, worker: Worker) -> None:
        if worker.load is not None:
            self.placement.note_load(worker, worker.load.num_requests, worker.load.num_tokens)


def _outcome_of(leg: Leg) -> Outcome:
    """A leg that was aborted says nothing of its worker."""
    if leg.failure is not None:
        return leg.failure.outcome
    if not leg.is_whole:
        return Outcome.NO_VERDICT
    return leg.visit.verdict or SUCCESS
