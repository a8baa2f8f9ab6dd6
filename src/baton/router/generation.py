"""HTTP handlers of the routes that make tokens.

Elsewhere: everything about workers and operation (admin.py), the table of routes (app.py).
"""

import asyncio
import logging
from typing import Any

from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.obs.logs import EventLog
from baton.obs.recent import Recent
from baton.router import sse
from baton.router.config import RouterConfig
from baton.router.deadlines import Deadlines
from baton.router.dispatch import Dispatcher
from baton.router.errors import CLIENT_GONE_STATUS, Problem, RouterFailure, router_stopping
from baton.router.event_ids import LAST_EVENT_FIELD, EventIds, Place, RequestIds, refuse_ids
from baton.router.exchange import REQUEST_ID, Exchange, problem_response, request_id_of
from baton.router.fleet import Fleet
from baton.router.http.messages import Request, Response
from baton.router.http.stream import ResponseStream
from baton.router.journal import Journey
from baton.router.legs import Wire
from baton.router.plan import route_fields
from baton.router.requests import Generation, parse_generation
from baton.router.tenants import TenantGate
from baton.router.trace_context import trace_id_of

_log = EventLog("baton.router")


class GenerationHandlers:
    """`idle` is set while no request runs."""

    def __init__(
        self, config: RouterConfig, fleet: Fleet, wire: Wire, clock: Clock, tenants: TenantGate
    ):
        self._config = config
        self._fleet = fleet
        self._wire = wire
        self._clock = clock
        key = config.event_id_key
        self._event_ids = EventIds(key) if key is not None else None
        self._authorization = config.authorization_of_workers
        self._dispatcher = Dispatcher(config, fleet, wire, tenants)
        limit_s = config.request_timeout_s
        self._running = Deadlines[Exchange](limit_s, lambda exchange: exchange.expire(limit_s))
        self._journal: Recent[Journey] = Recent()
        self._is_stopping = False
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def refuse_new(self) -> None:
        """From now on new requests get a 503; running ones go on."""
        self._is_stopping = True

    def stop_running(self) -> None:
        """End what still runs, with an error that says why."""
        for exchange in self._running.items():
            exchange.stop()

    def close(self) -> None:
        self._running.close()

    def journey(self, request_id: str) -> Journey | None:
        """Of a request that runs, or is among the last that ended."""
        for exchange in self._running.items():
            if exchange.request_id == request_id:
                return exchange.journey()
        return self._journal.find(lambda each: each.request_id == request_id)

    def journeys_since(self, since_s: float) -> list[Journey]:
        ended = self._journal.since(lambda each: each.end_s is None or each.end_s >= since_s)
        return [*ended, *(exchange.journey() for exchange in self._running.items())]

    async def handle(self, request: Request) -> Response | ResponseStream:
        started_s = self._clock.now_s()
        request_id = request_id_of(request.headers)
        route, metrics = request.path, self._fleet.metrics
        status, reason, exchange = CLIENT_GONE_STATUS, "", None
        metrics.exchanges.num_inflight += 1
        try:
            generation = parse_generation(route, request.body)
            ids: RequestIds | None = None
            if self._event_ids is not None or LAST_EVENT_FIELD in request.headers:
                ids = self._ids_of(request, generation)
                if ids is not None and ids.seen is not None:
                    request_id = ids.shown_request_id or request_id
                    self._note_return(request_id, ids.seen)
                    if ids.seen.has_everything:
                        status = 200
                        return _nothing_left(request_id)
            exchange = Exchange(
                request,
                generation,
                request_id,
                self._wire,
                metrics,
                self._clock,
                started_s,
                may_retry=self._config.max_resumes > 0,
                authorization=self._authorization,
            )
            if ids is not None:
                exchange.give_ids(ids)
            try:
                return await self._serve(exchange)
            finally:
                status, reason = exchange.status, exchange.reason
                self._journal.add(exchange.journey(self._clock.now_s()))
        except RequestError as error:
            status, reason = error.status, error.message
            return problem_response(problem_of(error), request_id, trace_id_of(request.headers))
        except Exception as error:
            status, reason = 500, repr(error)
            raise
        finally:
            duration_s = self._clock.now_s() - started_s
            metrics.exchanges.num_inflight -= 1
            metrics.exchanges.note_end(route, status, duration_s)
            if status >= 400 or _log.logger.isEnabledFor(logging.DEBUG):
                _log_end(request, request_id, status, reason, duration_s, exchange)

    def _ids_of(self, request: Request, generation: Generation) -> RequestIds | None:
        if self._event_ids is None:
            refuse_ids(request)
            return None
        return self._event_ids.for_request(request, generation)

    def _note_return(self, request_id: str, seen: Place) -> None:
        self._fleet.metrics.resumes.labels("came_back").inc()
        _log.info("client came back", request_id=request_id, num_tokens=seen.num_tokens)

    async def _serve(self, exchange: Exchange) -> Response | ResponseStream:
        if self._is_stopping:
            return exchange.fail(router_stopping())
        self._running.add(exchange)
        self.idle.clear()
        try:
            return await self._dispatcher.serve(exchange)
        except RouterFailure as failure:
            return exchange.fail(failure)
        finally:
            self._running.discard(exchange)
            if not self._running:
                self.idle.set()


def _nothing_left(request_id: str) -> Response:
    """For a client that came back with everything."""
    headers = {"Content-Type": "text/event-stream; charset=utf-8", REQUEST_ID: request_id}
    return Response(200, sse.DONE_EVENT, headers)


def _log_end(
    request: Request,
    request_id: str,
    status: int,
    reason: str,
    duration_s: float,
    exchange: Exchange | None,
) -> None:
    """The one line about a request, a successful one's for who asks for much."""
    fields: dict[str, Any] = {"request_id": request_id}
    trace_id = trace_id_of(request.headers)
    if trace_id:
        fields["trace_id"] = trace_id
    fields |= {"route": request.path, "status": status}
    if status >= 400:
        fields["reason"] = reason or "the client left"
    fields["duration_s"] = round(duration_s, 3)
    if exchange is not None:
        fields.update(route_fields(exchange))
    if status < 400:
        _log.debug("request done", **fields)
    else:
        write = _log.warning if status >= 500 else _log.info
        write("request failed", **fields)


def problem_of(error: RequestError) -> Problem:
    return Problem(status=error.status, code=error.code, message=error.message, param=error.param)
