"""HTTP handlers of the routes that make tokens.

Elsewhere: everything about workers and operation (admin.py), the table of routes (app.py).
"""

import asyncio

from aiohttp import web

from baton.core.clock import Clock
from baton.core.errors import RequestError
from baton.obs.logs import EventLog
from baton.router.config import RouterConfig
from baton.router.dispatch import Dispatcher
from baton.router.errors import CLIENT_GONE_STATUS, Problem, RouterFailure, router_stopping
from baton.router.exchange import Exchange, problem_response, request_id_of
from baton.router.fleet import Fleet
from baton.router.legs import Wire
from baton.router.requests import Generation, parse_generation

_log = EventLog("baton.router")


class GenerationHandlers:
    """`idle` is set while no request runs."""

    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire, clock: Clock):
        self._config = config
        self._fleet = fleet
        self._wire = wire
        self._clock = clock
        self._dispatcher = Dispatcher(config, fleet, wire)
        self._running: set[Exchange] = set()
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
        for exchange in list(self._running):
            exchange.stop()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        started_s = self._clock.now_s()
        request_id = request_id_of(request.headers)
        route, metrics = request.path, self._fleet.metrics
        status, reason = CLIENT_GONE_STATUS, ""
        metrics.inflight.inc()
        try:
            generation = parse_generation(route, await read_body(request))
            response, status, reason = await self._serve(request, generation, request_id, started_s)
            return response
        except RequestError as error:
            status, reason = error.status, error.message
            return problem_response(problem_of(error), request_id)
        except web.HTTPException as error:
            status, reason = error.status, error.reason
            raise
        except Exception as error:
            status, reason = 500, repr(error)
            raise
        finally:
            duration_s = self._clock.now_s() - started_s
            metrics.inflight.dec()
            metrics.requests.labels(route, str(status)).inc()
            metrics.duration.labels(route).observe(duration_s)
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

    async def _serve(
        self, request: web.Request, generation: Generation, request_id: str, started_s: float
    ) -> tuple[web.StreamResponse, int, str]:
        """The response, the status that tells how it ended, and why if it failed."""
        exchange = Exchange(
            request, generation, request_id, self._wire, self._fleet.metrics, self._clock, started_s
        )
        self._running.add(exchange)
        self.idle.clear()
        try:
            response = await self._within_limits(exchange)
            return response, exchange.status, exchange.reason
        except ConnectionResetError:
            # workers' connections fail as LegFailure, so this one is the client's
            return exchange.abandoned(), CLIENT_GONE_STATUS, ""
        finally:
            self._running.discard(exchange)
            if not self._running:
                self.idle.set()

    async def _within_limits(self, exchange: Exchange) -> web.StreamResponse:
        if self._is_stopping:
            return await exchange.fail(router_stopping())
        limit_s = self._config.request_timeout_s
        try:
            async with exchange.limit(limit_s):
                return await self._dispatcher.serve(exchange)
        except TimeoutError:
            return await exchange.fail(exchange.expired(limit_s))
        except RouterFailure as failure:
            return await exchange.fail(failure)


async def read_body(request: web.Request) -> bytes:
    """The whole body; a declared length above the limit is refused before reading any of it."""
    limit = request.client_max_size
    if limit and (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    return await request.read()


def problem_of(error: RequestError) -> Problem:
    return Problem(status=error.status, code=error.code, message=error.message, param=error.param)
