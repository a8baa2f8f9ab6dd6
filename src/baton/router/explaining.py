"""HTTP handlers that say where time went, joined with what the workers say: one request explained,
and profiles of all workers, or of those of one role.

Elsewhere: what the router remembers (journal.py), a worker's answers (api/explaining.py).
"""

import asyncio
import os
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.core.timeline import ClockFacts
from baton.obs.chrome_trace import Trace, TracedProcess, TraceFacts, api_events, merge
from baton.router.config import WorkerRole
from baton.router.errors import LegFailure
from baton.router.exchange import forwarded_headers, request_id_of
from baton.router.fleet import Fleet
from baton.router.generation import GenerationHandlers
from baton.router.http.messages import Request, Response
from baton.router.legs import WholeAnswer, Wire
from baton.router.workers import Worker

_TIMEOUT_S: Final = 10.0
_TRACE_TIMEOUT_S: Final = 60.0
_JSON: Final = {"Content-Type": "application/json"}


class ExplainingHandlers:
    """`authorization`: what workers get to see in place of the client's; None: the client's."""

    def __init__(
        self,
        fleet: Fleet,
        wire: Wire,
        generation: GenerationHandlers,
        clock: Clock,
        authorization: str | None,
    ):
        self._fleet = fleet
        self._wire = wire
        self._generation = generation
        self._clock = clock
        self._authorization = authorization
        self._profiled_since_s: float | None = None

    async def explain(self, request: Request) -> Response:
        """The router's part of a request, and those of the workers that it was sent to."""
        request_id = request.parameters["request_id"]
        journey = self._generation.journey(request_id)
        if journey is None:
            raise RequestError(
                f"the router remembers no request {request_id!r}; it keeps the last 1,000, by the "
                "id of their X-Request-ID header",
                param="request_id",
                status=404,
                code="unknown_request",
            )
        workers = {worker.url: worker for each in journey.attempts for worker in each.plan.workers}
        parts = await asyncio.gather(*(self._part(worker, request) for worker in workers.values()))
        answer = {
            "request_id": request_id,
            "now_s": self._clock.now_s(),
            "clock": ClockFacts.read(),
            "router": journey.timeline(),
            "workers": parts,
        }
        return _json(answer)

    async def start_profile(self, request: Request) -> Response:
        """Tell the workers to begin. What all of them refuse has their status; 503 if only some
        cannot, and then the others have begun."""
        workers = self._wanted(request)
        outcomes = await asyncio.gather(*(self._outcome(worker, request) for worker in workers))
        self._profiled_since_s = self._clock.now_s()
        statuses = {outcome["status"] for outcome in outcomes}
        status = statuses.pop() if len(statuses) == 1 else 503
        return _json({"success": status == 200, "workers": outcomes}, status)

    async def stop_profile(self, request: Request) -> Response:
        """One trace of all workers and of the router. What a worker that gives none says is among
        the notes; 409 where there is no worker with one."""
        workers = self._wanted(request)
        answers = await asyncio.gather(*(self._try(worker, request) for worker in workers))
        traces = [each.body for each in answers if isinstance(each, WholeAnswer)
                  and each.status == 200]  # fmt: skip
        notes = [note for each in answers if (note := _problem(each)) is not None]
        if not traces:
            said = "; ".join(notes) or "there are no such workers"
            raise RequestError(
                f"no worker has a profile: {said}; POST /start_profile first",
                status=409,
                code="no_profile",
            )
        own = self._own_trace(notes)
        body = await asyncio.to_thread(_joined, traces, own)
        return Response(200, body, _JSON)

    def _own_trace(self, notes: list[str]) -> Trace:
        now_s = self._clock.now_s()
        since_s = self._profiled_since_s if self._profiled_since_s is not None else now_s
        self._profiled_since_s = None
        process = TracedProcess(
            pid=os.getpid(), kind="router", role="", start_s=since_s, end_s=now_s
        )
        journeys = self._generation.journeys_since(since_s)
        return Trace(
            events=api_events(process, (journey.timeline() for journey in journeys)),
            facts=TraceFacts(clock=ClockFacts.read(), processes=[process], notes=notes),
        )

    async def _part(self, worker: Worker, request: Request) -> dict[str, Any]:
        answer = await self._try(worker, request)
        part: dict[str, Any] = {"worker": worker.url, "role": worker.role.value}
        problem = _problem(answer)
        if problem is None and isinstance(answer, WholeAnswer):
            return {**part, "part": msgspec.Raw(answer.body)}
        return {**part, "error": problem}

    async def _outcome(self, worker: Worker, request: Request) -> dict[str, Any]:
        answer = await self._try(worker, request)
        outcome: dict[str, Any] = {"worker": worker.url, "status": 503}
        if isinstance(answer, WholeAnswer):
            outcome["status"] = answer.status
        problem = _problem(answer)
        return outcome if problem is None else {**outcome, "message": problem}

    async def _try(self, worker: Worker, request: Request) -> WholeAnswer | LegFailure:
        headers = forwarded_headers(
            request.headers, request_id_of(request.headers), self._authorization
        )
        method = "GET" if request.method == "HEAD" else request.method
        limit_s = _TRACE_TIMEOUT_S if request.path == "/stop_profile" else _TIMEOUT_S
        try:
            return await self._wire.fetch(
                worker, method, request.path, request.body, headers, limit_s
            )
        except LegFailure as failure:
            return failure

    def _wanted(self, request: Request) -> Iterable[Worker]:
        """All workers, or those of the roles that the query names. Raises RequestError."""
        names = parse_qs(request.target.partition("?")[2]).get("role")
        known = {role.value: role for role in WorkerRole}
        for name in names or ():
            if name not in known:
                raise RequestError(
                    f"role is {name!r}; it must be one of {', '.join(known)}", param="role"
                )
        roles = [known[name] for name in names] if names else list(WorkerRole)
        return [worker for worker in self._fleet.pool if worker.role in roles]


def _problem(answer: WholeAnswer | LegFailure) -> str | None:
    if isinstance(answer, LegFailure):
        return answer.problem.message
    if answer.status == 200:
        return None
    said = answer.body[:300].decode(errors="replace")
    return f"{answer.worker.url} answered {answer.status}: {said}"


def _joined(traces: list[bytes], own: Trace) -> bytes:
    decoder = msgspec.json.Decoder(Trace)
    return msgspec.json.encode(merge([own, *map(decoder.decode, traces)]))


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(answer), _JSON)
