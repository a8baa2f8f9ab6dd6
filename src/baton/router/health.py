"""Asking workers how they are: one task per worker, once per interval and whenever doubt arises.

A round is GET /health, what the worker says of itself when that may have changed (first
contact, recovery, a broken connection), and its load.
Invariant: this module decides nothing; it reports to the pool, whose transitions are pure.
Elsewhere: those transitions (workers.py), reading the answers (worker_reports.py).
"""

import asyncio
from typing import Any

import msgspec

from baton.core.clock import Clock
from baton.obs.logs import EventLog
from baton.router import worker_reports
from baton.router.config import HealthRules
from baton.router.http.client import Fetched, UpstreamPool
from baton.router.http.upstream import NotConnected, NotConnectedInTime, UpstreamError
from baton.router.workers import Drainer, Phase, Worker, WorkerPool

_log = EventLog("baton.router")
_NO_ANSWER = 0

QUICK_S = 1.0
"""Longest wait for the answer of a worker whose streams do not move: two witnesses need less time
than one."""

AGAIN_S = 0.25
"""Pause before a worker in use is asked again that did not answer well."""


class _Watch:
    """One worker under observation. `doubt` is set to be asked at once."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.doubt = asyncio.Event()
        self.wants_facts = True
        self.was_late = False
        self.load_path: str | None = worker_reports.LOAD_PATHS[0]
        self.task: asyncio.Task[None] | None = None
        self.quick: asyncio.Task[None] | None = None


class HealthMonitor:
    def __init__(
        self,
        pool: WorkerPool,
        connections: UpstreamPool,
        rules: HealthRules,
        clock: Clock,
        startup_timeout_s: float,
        headers: dict[str, str],
    ):
        self._pool = pool
        self._connections = connections
        self.rules = rules
        self._clock = clock
        self._startup_timeout_s = startup_timeout_s
        self._headers = headers
        self._watches: dict[str, _Watch] = {}

    def watch(self, worker: Worker) -> None:
        watch = self._watches[worker.id] = _Watch(worker)
        watch.task = asyncio.create_task(self._run(watch), name=f"health {worker.url}")

    async def forget(self, worker_id: str) -> None:
        await _ended(self._watches.pop(worker_id))

    async def close(self) -> None:
        watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            await _ended(watch)

    def doubt(self, worker: Worker) -> None:
        """Something went wrong there: ask now, and read its facts anew."""
        watch = self._watches.get(worker.id)
        if watch is not None:
            watch.wants_facts = True
            watch.doubt.set()

    def suspect(self, worker: Worker) -> None:
        """None of its streams moves: unless it answers now, beside what it is being asked already,
        it is not used."""
        watch = self._watches.get(worker.id)
        if watch is not None and worker.is_healthy and (watch.quick is None or watch.quick.done()):
            name = f"quick health {worker.url}"
            watch.quick = asyncio.create_task(self._ask_quickly(worker), name=name)

    async def _ask_quickly(self, worker: Worker) -> None:
        timeout_s = min(QUICK_S, self.rules.timeout_s)
        try:
            answer = await self._get(worker, "/health", timeout_s)
            said = "" if answer.status // 100 == 2 else f"answers {answer.status}"
        except UpstreamError as error:
            said = str(error)
        if said and worker.is_healthy:
            reason = f"none of its streams moves, and GET /health: {said}"
            self._pool.note_refusal(worker, reason, self._clock.now_s())
            log_move(worker)

    async def _run(self, watch: _Watch) -> None:
        while True:
            watch.doubt.clear()
            await self._round(watch)
            self._mention_lateness(watch)
            try:
                async with asyncio.timeout(self._pause_s(watch.worker)):
                    await watch.doubt.wait()
            except TimeoutError:
                continue

    def _pause_s(self, worker: Worker) -> float:
        is_in_doubt = worker.is_healthy and worker.health.num_failures > 0
        return min(AGAIN_S, self.rules.interval_s) if is_in_doubt else self.rules.interval_s

    async def _round(self, watch: _Watch) -> None:
        worker, phase = watch.worker, watch.worker.health.phase
        was_draining = worker.is_draining
        try:
            answer = await self._get(worker, "/health")
            is_draining = worker_reports.is_draining(answer.status, answer.body)
            self._pool.note_drain(worker, Drainer.HEALTH, is_draining)
            if answer.status // 100 == 2 or is_draining:
                await self._report_well(watch)
            else:
                reason = f"GET /health answers {answer.status}"
                self._pool.note_failure(worker, reason, self._clock.now_s())
        except UpstreamError as error:
            self._note_no_answer(worker, error)
        if worker.health.phase is not phase:
            log_move(worker)
        if worker.is_draining != was_draining:
            log_drain(worker)

    def _note_no_answer(self, worker: Worker, error: UpstreamError) -> None:
        now_s = self._clock.now_s()
        if isinstance(error, NotConnected) and not isinstance(error, NotConnectedInTime):
            self._pool.note_refusal(worker, str(error), now_s)
        else:
            self._pool.note_failure(worker, f"GET /health: {error}", now_s)

    async def _report_well(self, watch: _Watch) -> None:
        """Facts first: who is healthy is used at once, with the facts then known."""
        worker = watch.worker
        if watch.wants_facts or not worker.is_healthy:
            await self._read_facts(watch)
        self._pool.note_success(worker, self._clock.now_s())
        await self._read_load(watch)

    async def _read_facts(self, watch: _Watch) -> None:
        answered, server = await self._first_json(watch.worker, worker_reports.SERVER_INFO_PATHS)
        _, model = await self._first_json(watch.worker, worker_reports.MODEL_INFO_PATHS)
        if answered or watch.worker.facts is None:
            self._pool.note_facts(watch.worker, worker_reports.facts_from(server, model))
        watch.wants_facts = not answered

    async def _read_load(self, watch: _Watch) -> None:
        while watch.load_path is not None:
            status, answer = await self._json(watch.worker, watch.load_path)
            if status == 404:
                watch.load_path = worker_reports.next_load_path(watch.load_path)
                continue
            load = worker_reports.load_from(answer)
            if load is not None:
                self._pool.note_load(watch.worker, *load, self._clock.now_s())
            return

    async def _first_json(self, worker: Worker, paths: tuple[str, ...]) -> tuple[bool, Any]:
        """Whether the worker answered, and what, at the first path it knows."""
        for path in paths:
            status, answer = await self._json(worker, path)
            if status != 404:
                return status != _NO_ANSWER, answer
        return True, None

    async def _json(self, worker: Worker, path: str) -> tuple[int, Any]:
        """Status and content; a worker without such a report is still a healthy worker."""
        try:
            answer = await self._get(worker, path)
            return answer.status, msgspec.json.decode(answer.body) if answer.status == 200 else None
        except UpstreamError as error:
            reason = str(error)
            _log.warning("worker gives no report", worker=worker.url, path=path, reason=reason)
            return _NO_ANSWER, None
        except msgspec.DecodeError as error:
            _log.warning("worker's report is odd", worker=worker.url, path=path, reason=str(error))
            return 200, None

    async def _get(self, worker: Worker, path: str, timeout_s: float | None = None) -> Fetched:
        limit_s = self.rules.timeout_s if timeout_s is None else timeout_s
        return await self._connections.fetch(
            worker.origin, "GET", path, self._headers, b"", limit_s
        )

    def _mention_lateness(self, watch: _Watch) -> None:
        worker = watch.worker
        waited_s = self._clock.now_s() - worker.added_s
        if worker.facts is None and waited_s > self._startup_timeout_s and not watch.was_late:
            watch.was_late = True
            _log.error(
                "worker not up yet",
                worker=worker.url,
                role=worker.role,
                waited_s=round(waited_s),
                reason=worker.health.reason,
            )


def log_move(worker: Worker) -> None:
    """The one line about a worker that has become healthy or unhealthy."""
    if worker.health.phase is Phase.HEALTHY:
        _log.info("worker healthy", worker=worker.url, role=worker.role)
    else:
        reason = worker.health.reason
        _log.warning("worker unhealthy", worker=worker.url, role=worker.role, reason=reason)


def log_drain(worker: Worker) -> None:
    """The one line about a worker that has begun, or ceased, to take nothing new."""
    drained_by = ", ".join(sorted(worker.drainers))
    event = "worker drains" if worker.is_draining else "worker drains no more"
    _log.info(event, worker=worker.url, role=worker.role, drained_by=drained_by or None)


async def _ended(watch: _Watch) -> None:
    tasks = {task for task in (watch.task, watch.quick) if task is not None}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
