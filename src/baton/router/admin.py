"""HTTP handlers about the workers and the router itself.

Invariant: an answer tells what is so when it is sent; nothing is "queued".
Elsewhere: routes that make tokens (generation.py), the table of routes (app.py).
"""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from baton.core.errors import ConfigError, RequestError
from baton.router.config import (
    MAX_PORT,
    RouterConfig,
    WorkerRole,
    WorkerSpec,
    check_role,
    parse_worker_url,
)
from baton.router.errors import LegFailure, NoWorker
from baton.router.exchange import forwarded_headers, request_id_of
from baton.router.fleet import Fleet
from baton.router.http.messages import Request, Response
from baton.router.legs import WholeAnswer, Wire
from baton.router.metrics import CONTENT_TYPE
from baton.router.workers import Drainer, Worker, WorkerNotes

WORKER_CALL_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 30.0
"""Above the 20 s after which a worker itself answers that it makes no token."""
_OK = Response(200, b"OK", {"Content-Type": "text/plain; charset=utf-8"})
_ANSWERING_ROLES = (WorkerRole.DECODE, WorkerRole.REGULAR, WorkerRole.PREFILL)


Cost = Annotated[float, msgspec.Meta(ge=0)]


class AddWorker(msgspec.Struct):
    """Body of POST /workers; SGLang's other fields are ignored."""

    url: str
    priority: int = 50
    cost: Cost = 1.0
    labels: dict[str, str] = {}
    worker_type: WorkerRole = WorkerRole.REGULAR
    bootstrap_port: int | None = None


class UpdateWorker(msgspec.Struct):
    """Body of PUT /workers/{id}: what is left out stays as it is."""

    draining: bool | None = None
    priority: int | None = None
    cost: Cost | None = None
    labels: dict[str, str] | None = None


class Abort(msgspec.Struct):
    """Body of POST /abort_request."""

    rid: str | None = None
    abort_all: bool | None = None


class AdminHandlers:
    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire):
        self._config = config
        self._fleet = fleet
        self._wire = wire

    async def health(self, _request: Request) -> Response:
        """The router runs; whether requests can be served is /readiness."""
        return _OK

    async def readiness(self, _request: Request) -> Response:
        workers = list(self._fleet.pool)
        missing = self._fleet.missing_roles()
        answer: dict[str, Any] = {
            "status": "not ready" if missing else "ready",
            "healthy_workers": sum(worker.is_available for worker in workers),
            "total_workers": len(workers),
        }
        if missing:
            answer["missing"] = [role.value for role in missing]
            answer["reason"] = "no usable worker of role " + " and ".join(missing)
        return _json(answer, status=503 if missing else 200)

    async def queue(self, _request: Request) -> Response:
        """How long a request that came now would probably wait."""
        admission = self._fleet.admission
        answer = {
            "waiting": admission.num_waiting,
            "running": admission.num_running,
            "max_running": admission.rules.max_running,
            "max_waiting": admission.rules.max_waiting,
            "expected_wait_s": round(admission.expected_wait_s, 3),
        }
        return _json(answer)

    async def health_generate(self, request: Request) -> Response:
        """One worker of every role makes a token; the first that cannot is the answer."""
        workers = self._fleet.plan().workers
        calls = (self._call(worker, request, b"", PROBE_TIMEOUT_S) for worker in workers)
        for answer in await asyncio.gather(*calls):
            if answer.status >= 400:
                return _passed_on(answer)
        return _OK

    async def metrics(self, _request: Request) -> Response:
        return Response(200, self._fleet.metrics.render(), {"Content-Type": CONTENT_TYPE})

    async def list_workers(self, _request: Request) -> Response:
        workers = list(self._fleet.pool)
        stats = {
            f"{role}_count": sum(worker.role is role for worker in workers) for role in WorkerRole
        }
        return _json({"workers": _records(workers), "total": len(workers), "stats": stats})

    async def get_worker(self, request: Request) -> Response:
        return _json(_record(self._named_worker(request)))

    async def add_worker(self, request: Request) -> Response:
        """Adding a worker that is there already, in the same role, changes nothing."""
        spec, notes = self._wanted_worker(request)
        worker = self._fleet.pool.find(spec.url)
        if worker is not None and worker.spec != spec:
            raise RequestError(
                f"url {spec.url} is already there as {worker.role} "
                f"(bootstrap_port {worker.spec.bootstrap_port}); remove worker {worker.id} first",
                param="url",
                status=409,
                code="worker_exists",
            )
        if worker is None:
            worker = self._fleet.join(spec)
            self._fleet.pool.note_down(worker, notes)
        location = f"/workers/{worker.id}"
        answer = {
            "status": "accepted",
            "worker_id": worker.id,
            "url": worker.url,
            "location": location,
            "message": "Worker added; it is used as soon as it answers GET /health",
        }
        return _json(answer, status=202, headers={"Location": location})

    async def update_worker(self, request: Request) -> Response:
        """Done when this is answered."""
        worker = self._named_worker(request)
        wanted = _wanted_update(request.body)
        if wanted.draining is not None:
            self._fleet.drain(worker, Drainer.OPERATOR, wanted.draining)
        self._fleet.pool.note_down(worker, _notes_after(worker.notes, wanted))
        answer = {"status": "accepted", "worker_id": worker.id, "message": _standing_of(worker)}
        return _json(answer, status=202)

    async def remove_worker(self, request: Request) -> Response:
        worker = self._named_worker(request)
        await self._fleet.leave(worker)
        answer = {
            "status": "accepted",
            "worker_id": worker.id,
            "message": f"Worker removed; {worker.num_in_flight} requests there run to their end",
        }
        return _json(answer, status=202)

    async def get_loads(self, _request: Request) -> Response:
        """KV tokens as last reported; -1 where a worker reports none."""
        loads = [
            {"worker": worker.url, "load": worker.load.num_tokens if worker.load else -1}
            for worker in self._fleet.pool
        ]
        return _json({"workers": loads})

    async def ask_one(self, request: Request) -> Response:
        """GET from any healthy worker; decode first, whose answers are what clients see."""
        for role in _ANSWERING_ROLES:
            workers = self._fleet.pool.available(role)
            if workers:
                return _passed_on(await self._call(workers[0], request, b""))
        role = self._config.roles[-1]
        raise NoWorker(role, len(self._fleet.pool.of_role(role)))

    async def flush_cache(self, request: Request) -> Response:
        outcomes = await self._call_all(request, b"")
        num_done = sum(outcome["status"] == 200 for outcome in outcomes)
        all_done = bool(outcomes) and num_done == len(outcomes)
        answer: dict[str, Any] = {
            "status": "success" if all_done else "error",
            "message": f"Successfully flushed cache on all {num_done} HTTP workers"
            if all_done
            else f"Flushed cache on {num_done} of {len(outcomes)} HTTP workers",
            "workers_flushed": num_done,
            "total_http_workers": len(outcomes),
            "total_workers": len(outcomes),
        }
        if not all_done:
            answer["failed"] = [outcome for outcome in outcomes if outcome["status"] != 200]
        return _json(answer, status=200 if all_done else 503)

    async def abort_request(self, request: Request) -> Response:
        """Told to all workers: nobody here remembers which one has the request."""
        body = request.body
        _check_abort(body)
        outcomes = await self._call_all(request, body)
        told = any(outcome["status"] == 200 for outcome in outcomes)
        answer = {"status": "success" if told else "error", "workers": outcomes}
        return _json(answer, status=200 if told else 503)

    async def _call_all(self, request: Request, body: bytes) -> list[dict[str, Any]]:
        async def outcome(worker: Worker) -> dict[str, Any]:
            try:
                answer = await self._call(worker, request, body)
            except LegFailure as failure:
                return {"worker": worker.url, "status": 503, "message": failure.problem.message}
            return {"worker": worker.url, "status": answer.status}

        return await asyncio.gather(*(outcome(worker) for worker in self._fleet.pool))

    async def _call(
        self,
        worker: Worker,
        request: Request,
        body: bytes,
        timeout_s: float = WORKER_CALL_TIMEOUT_S,
    ) -> WholeAnswer:
        headers = forwarded_headers(
            request.headers,
            request_id_of(request.headers),
            self._config.authorization_of_workers,
        )
        method = "GET" if request.method == "HEAD" else request.method
        return await self._wire.fetch(worker, method, request.target, body, headers, timeout_s)

    def _named_worker(self, request: Request) -> Worker:
        worker_id = request.parameters["worker_id"]
        worker = self._fleet.pool.get(worker_id)
        if worker is None:
            raise RequestError(
                f"no worker has id {worker_id!r}; GET /workers lists them",
                param="worker_id",
                status=404,
                code="not_found",
            )
        return worker

    def _wanted_worker(self, request: Request) -> tuple[WorkerSpec, WorkerNotes]:
        try:
            wanted = msgspec.json.decode(request.body, type=AddWorker)
            url = parse_worker_url("url", wanted.url)
            check_role(wanted.worker_type, self._config.pd_disaggregation)
        except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
            raise RequestError(str(error)) from error
        port = wanted.bootstrap_port
        if port is not None and not 1 <= port <= MAX_PORT:
            raise RequestError(
                f"bootstrap_port is {port}; it must be from 1 to {MAX_PORT}", param="bootstrap_port"
            )
        notes = WorkerNotes(priority=wanted.priority, cost=wanted.cost, labels=wanted.labels)
        return WorkerSpec(url, wanted.worker_type, port), notes


def _wanted_update(body: bytes) -> UpdateWorker:
    try:
        wanted = msgspec.json.decode(body, type=UpdateWorker)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is no update of a worker: {error}") from error
    if wanted == UpdateWorker():
        raise RequestError(
            'the body changes nothing; give draining, as in {"draining": true}, priority, cost or '
            "labels",
            param="draining",
        )
    return wanted


def _notes_after(notes: WorkerNotes, wanted: UpdateWorker) -> WorkerNotes:
    """What is left out stays; labels are replaced as a whole."""
    return WorkerNotes(
        priority=notes.priority if wanted.priority is None else wanted.priority,
        cost=notes.cost if wanted.cost is None else wanted.cost,
        labels=notes.labels if wanted.labels is None else wanted.labels,
    )


def _standing_of(worker: Worker) -> str:
    if worker.is_draining:
        drained_by = ", ".join(sorted(worker.drainers))
        return (
            f"Worker takes nothing new (by {drained_by}); "
            f"{worker.num_in_flight} requests there run to their end"
        )
    return "Worker updated; it takes requests while it is healthy"


def _check_abort(body: bytes) -> None:
    try:
        wanted = msgspec.json.decode(body or b"{}", type=Abort)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is no abort request: {error}") from error
    if not (wanted.rid or wanted.abort_all):
        raise RequestError("give rid, or abort_all as true; the body has neither", param="rid")


def _passed_on(answer: WholeAnswer) -> Response:
    return Response(answer.status, answer.body, answer.headers)


def _records(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    return [_record(worker) for worker in workers]


def _record(worker: Worker) -> dict[str, Any]:
    """The shape of SGLang's router, and what else there is to know."""
    facts = worker.facts
    return {
        "id": worker.id,
        "url": worker.url,
        "model_id": facts.model_id if facts else "unknown",
        "priority": worker.notes.priority,
        "cost": worker.notes.cost,
        "labels": worker.notes.labels,
        "worker_type": worker.role.value,
        "is_healthy": worker.is_healthy,
        "load": worker.num_in_flight,
        "connection_mode": "HTTP",
        "bootstrap_port": worker.bootstrap_port,
        "pid": worker.local_pid,
        "metadata": facts.metadata if facts else {},
        "disable_health_check": False,
        "is_announced": worker.is_announced,
        "is_draining": worker.is_draining,
        "drained_by": sorted(worker.drainers),
        "phase": worker.health.phase.value,
        "reason": worker.health.reason,
    }


def _json(
    answer: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        status, msgspec.json.encode(answer), {"Content-Type": "application/json", **(headers or {})}
    )
