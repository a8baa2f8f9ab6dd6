"""The workers as one thing: pick one, count what runs there, and act on what went wrong.

Invariant: a leg started here is counted at its worker until it has ended, however it ends; no
leg outlives `close`.
Elsewhere: transitions (workers.py), choosing (placement.py), probing (health.py).
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any, TypeVar

from baton.core.clock import Clock
from baton.core.request import MAX_BOOTSTRAP_ROOM
from baton.obs.logs import EventLog
from baton.router.admission import Admission
from baton.router.breaker import Outcome
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.errors import LegBroken, LegFailure, LegRefused, LegRejected, NoWorker, stage_of
from baton.router.health import HealthMonitor, log_move
from baton.router.metrics import RouterMetrics
from baton.router.placement import Placement, Visit
from baton.router.policies import UNKNOWN_REQUEST, RoutedRequest
from baton.router.workers import Worker, WorkerPool

_log = EventLog("baton.router")
T = TypeVar("T")


class Fleet:
    """`monitor` is given once the event loop runs (`attach`)."""

    def __init__(self, config: RouterConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._random = random.Random(config.seed)
        self._changed = asyncio.Event()
        self._legs: set[asyncio.Task[Any]] = set()
        self._monitor: HealthMonitor | None = None
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
        for leg in self._legs:
            leg.cancel()
        if self._legs:
            await asyncio.wait(self._legs)

    async def until(self, is_so: Callable[[WorkerPool], bool]) -> None:
        """Wait until the workers are in a state that `is_so`."""
        while not is_so(self.pool):
            self._changed.clear()
            await self._changed.wait()

    def missing_roles(self) -> list[WorkerRole]:
        """Roles without which no request can be served now."""
        if self.pool.healthy(WorkerRole.REGULAR):
            return []
        return [role for role in self._config.roles if not self.pool.healthy(role)]

    def plan(
        self, request: RoutedRequest = UNKNOWN_REQUEST, tried: Collection[str] = ()
    ) -> list[Worker]:
        """Whom to send a request to: one worker, or prefill and decode; raises NoWorker."""
        now_s = self._clock.now_s()
        workers = self.placement.plan(request, tried, now_s)
        if workers is not None:
            return workers
        usable = self.placement.has_usable
        role = next(role for role in self._config.roles if not usable(role, tried))
        num_cut_off, retry_after_s = self.placement.cut_off(role, now_s)
        raise NoWorker(role, len(self.pool.of_role(role)), num_cut_off, retry_after_s)

    def draw_room(self) -> int:
        """A room number in [0, 2^63), new for every attempt."""
        return self._random.randint(0, MAX_BOOTSTRAP_ROOM)

    @contextlib.contextmanager
    def counted(self, worker: Worker, request: RoutedRequest = UNKNOWN_REQUEST) -> Iterator[Visit]:
        """A request is at this worker for as long as the block runs; how the block ends is what
        the worker's breaker is told."""
        visit = self._begin(worker, request)
        outcome = Outcome.NO_VERDICT
        try:
            yield visit
            outcome = visit.verdict or Outcome.SUCCESS
        except LegFailure as failure:
            outcome = failure.outcome if failure.worker is worker else Outcome.NO_VERDICT
            raise
        finally:
            self._end(worker, visit, outcome)

    def note_first_byte(self, visit: Visit) -> None:
        """A stream has begun: its prompt is computed, and decode has taken over."""
        now_s = self._clock.now_s()
        self.placement.note_answering(visit, now_s)
        if visit.role is WorkerRole.DECODE:
            self.placement.note_taken_over(visit, now_s)
        else:
            self.placement.note_computed(visit, now_s)

    def watch_prefill(self, decode: Visit, prefill_leg: asyncio.Task[Any]) -> None:
        """Note at decode's visit when the prefill leg is answered."""

        def note(_leg: asyncio.Task[Any]) -> None:
            decode.computed_s = self._clock.now_s()

        prefill_leg.add_done_callback(note)

    def start_leg(self, leg: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a leg beside the request's handler."""
        task = asyncio.create_task(leg)
        self._legs.add(task)
        task.add_done_callback(self._end_leg)
        return task

    def start_counted_leg(
        self,
        worker: Worker,
        leg: Coroutine[Any, Any, T],
        request: RoutedRequest = UNKNOWN_REQUEST,
    ) -> asyncio.Task[T]:
        """Run a leg that may outlive the handler; it counts at the worker until it ends. Only a
        prefill leg ends when a prompt has been computed."""
        visit = self._begin(worker, request)
        task = self.start_leg(leg)

        def end(task: asyncio.Task[T]) -> None:
            outcome = _outcome_of(task, worker)
            if outcome is Outcome.SUCCESS:
                self.placement.note_computed(visit, self._clock.now_s())
            self._end(worker, visit, outcome)

        task.add_done_callback(end)
        return task

    def let_finish(self, leg: asyncio.Task[Any]) -> None:
        """Nobody waits for this leg any more: it may end by itself, within a limit."""
        if not leg.done():
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._config.prefill_drain_limit_s, leg.cancel)
            leg.add_done_callback(lambda _: timer.cancel())

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

    def _end_leg(self, leg: asyncio.Task[Any]) -> None:
        self._legs.discard(leg)
        if not leg.cancelled():
            leg.exception()  # the wire has reported it; asking marks it as seen

    def _begin(self, worker: Worker, request: RoutedRequest) -> Visit:
        self.pool.begin(worker)
        return self.placement.begin(worker, request, self._clock.now_s())

    def _end(self, worker: Worker, visit: Visit, outcome: Outcome) -> None:
        self.pool.end(worker)
        self.placement.end(visit, outcome, self._clock.now_s())
        self._changed.set()

    def _note_change(self, worker: Worker) -> None:
        self.placement.follow(worker, is_known=self.pool.get(worker.id) is worker)
        self._changed.set()

    def _note_load(self, worker: Worker) -> None:
        if worker.load is not None:
            self.placement.note_load(worker, worker.load.num_requests, worker.load.num_tokens)


def _outcome_of(task: asyncio.Task[Any], worker: Worker) -> Outcome:
    if task.cancelled():
        return Outcome.NO_VERDICT
    error = task.exception()
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, LegFailure) and error.worker is worker:
        return error.outcome
    return Outcome.NO_VERDICT
