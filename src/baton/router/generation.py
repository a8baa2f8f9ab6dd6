"""HTTP handlers of the routes that make tokens.

Elsewhere: everything about workers and operation (admin.py), the table of routes (app.py).
"""

import asyncio

from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.obs.logs import EventLog
from baton.obs.recent import Recent
from baton.router.config import RouterConfig
from baton.router.deadlines import Deadlines
from baton.router.dispatch import Dispatcher
from baton.router.errors import CLIENT_GONE_STATUS, Problem, RouterFailure, router_stopping
from baton.router.exchange import Exchange, problem_response, request_id_of
from baton.router.fleet import Fleet
from baton.router.http.messages import Request, Response
from baton.router.http.stream import ResponseStream
from baton.router.journal import Journey
from baton.router.legs import Wire
from baton.router.requests import parse_generation

_log = EventLog("baton.router")


class GenerationHandlers:
    """`idle` is set while no request runs."""

    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire, clock: Clock):
        self._config = config
        self._fleet = fleet
        self._wire = wire
        self._clock = clock
        self._dispatcher = Dispatcher(config, fleet, wire)
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
        status, reason = CLIENT_GONE_STATUS, ""
        metrics.exchanges.num_inflight += 1
        try:
            generation = parse_generation(route, request.body)
            exchange = Exchange(
                request,
                generation,
                request_id,
                self._wire,
                metrics,
                self._clock,
                started_s,
                may_resume=self._config.max_resumes > 0,
            )
            try:
                return await self._serve(exchange)
            finally:
                status, reason = exchange.status, exchange.reason
                self._journal.add(exchange.journey(self._clock.now_s()))
        except RequestError as error:
            status, reason = error.status, error.message
            return problem_response(problem_of(error), request_id)
        except Exception as error:
            status, reason = 500, repr(error)
            raise
        finally:
            duration_s = self._clock.now_s() - started_s
            metrics.exchanges.num_inflight -= 1
            metrics.exchanges.note_end(route, status, duration_s)
            if status >= 400:
                write = _log.warning if status >= 500 else _log.info
                write(
                    "request failed",
                    request_id=request_id,
                    route=route,
                    status=status,
                    reason=reason or "the client left",
                    duration_s=round(duration_s, 3),
                )

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


def problem_of(error: RequestError) -> Problem:
    return Problem(status=error.status, code=error.code, message=error.message, param=error.param)
