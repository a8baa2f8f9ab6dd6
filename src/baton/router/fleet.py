"""The workers as one thing: pick one, count what runs there, and act on what went wrong.

Invariant: a leg is counted at its worker from `leg_began` to `leg_ended`.
Elsewhere: transitions (workers.py), policies (policies.py), probing (health.py), legs (legs.py).
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Collection

from baton.core.clock import Clock
from baton.core.request import MAX_BOOTSTRAP_ROOM
from baton.obs.logs import EventLog
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.errors import LegBroken, LegFailure, LegRefused, LegRejected, NoWorker, stage_of
from baton.router.health import HealthMonitor, log_move
from baton.router.legs import Leg
from baton.router.metrics import RouterMetrics
from baton.router.policies import choose
from baton.router.workers import Worker, WorkerPool

_log = EventLog("baton.router")
_ROOM_BITS = MAX_BOOTSTRAP_ROOM.bit_length()


class Fleet:
    """`monitor` is given once the event loop runs (`attach`)."""

    def __init__(self, config: RouterConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._random = random.Random(config.seed)
        self._changed = asyncio.Event()
        self._monitor: HealthMonitor | None = None
        self.pool = WorkerPool(config.health, self._note_change)
        self.metrics = RouterMetrics(self.pool)

    def attach(self, monitor: HealthMonitor) -> None:
        """Start to watch: the workers of the configuration join now."""
        self._monitor = monitor
        for spec in self._config.workers:
            self.join(spec)

    def join(self, spec: WorkerSpec) -> Worker:
        """Add a worker; it is used as soon as it says that it is healthy."""
        assert self._monitor is not None
        worker = self.pool.add(str(uuid.uuid4()), spec, self._clock.now_s())
        self._monitor.watch(worker)
        return worker

    async def leave(self, worker: Worker) -> None:
        """Remove a worker; what runs there runs on."""
        assert self._monitor is not None
        self.pool.remove(worker.id)
        await self._monitor.forget(worker.id)

    async def close(self) -> None:
        if self._monitor is not None:
            await self._monitor.close()

    async def until(self, is_so: Callable[[WorkerPool], bool]) -> None:
        """Wait until the workers are in a state that `is_so`."""
        while not is_so(self.pool):
            self._changed.clear()
            await self._changed.wait()

    def missing_roles(self) -> list[WorkerRole]:
        """Roles without which no request can be served now."""
        return [role for role in self._config.roles if not self.pool.healthy(role)]

    def pick(self, role: WorkerRole, tried: Collection[str] = ()) -> Worker:
        """The worker to use next; raises NoWorker."""
        workers = self.pool.healthy(role, without=tried)
        if not workers:
            raise NoWorker(role, len(self.pool.of_role(role)))
        candidates = [worker.as_candidate() for worker in workers]
        draw = self._random.random()
        chosen = choose(self._config.policy_for(role), candidates, draw=draw)
        return next(worker for worker in workers if worker.id == chosen.worker_id)

    def draw_room(self) -> int:
        """A room number in [0, 2^63), new for every attempt."""
        return self._random.getrandbits(_ROOM_BITS)

    def leg_began(self, leg: Leg) -> None:
        """A request is sent to its worker."""
        self.pool.begin(leg.worker)

    def leg_ended(self, leg: Leg) -> None:
        self.pool.end(leg.worker)
        self._changed.set()

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
                self._doubt(worker)
            case LegBroken():
                self._doubt(worker)

    def _doubt(self, worker: Worker) -> None:
        assert self._monitor is not None
        self._monitor.doubt(worker)

    def _note_change(self, _worker: Worker) -> None:
        self._changed.set()
