"""From a request to the workers that serve it, and on to others where that is safe.

Another attempt is made when a connection was refused: nothing was sent to that worker, and the
other leg, if any, was cancelled before the client saw a byte. And when workers failed of whose
answer the client saw nothing, or a stream that another worker can go on with (exchange.py says
which). Then, if nobody is left, a worker is waited for.
Elsewhere: whose turn it is (admission.py), choosing workers (placement.py), who may try again
(setbacks.py), one attempt (pair.py for two workers, here for one).
"""

from collections.abc import Coroutine
from typing import Any

from baton.obs.logs import EventLog
from baton.router.config import RouterConfig
from baton.router.errors import LegFailure, LegRefused, NoWorker
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.http.messages import Response
from baton.router.http.stream import ResponseStream
from baton.router.legs import Wire
from baton.router.pair import serve_on_pair
from baton.router.plan import ROUTE_HEADER, Plan, route_text
from baton.router.policies import UNKNOWN_REQUEST, RoutedRequest
from baton.router.prompt_shape import Standing, priority_of, shape_of, standing_of
from baton.router.queue_updates import max_wait_s_of, wait_for_turn
from baton.router.setbacks import Setbacks
from baton.router.tenants import TenantGate
from baton.router.workers import Worker

_log = EventLog("baton.router")


class Dispatcher:
    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire, tenants: TenantGate):
        self._config = config
        self._tenants = tenants
        self._fleet = fleet
        self._wire = wire
        self._num_lingering = 0

    async def serve(self, exchange: Exchange) -> Response | ResponseStream:
        """Answer the request when its turn has come; raises RouterFailure."""
        request, caller = self._shape_of(exchange), exchange.caller
        if caller is None:
            if self._fleet.admission.is_open:
                return await self._serve_now(exchange, request)
            return await self._serve_in_turn(exchange, request)
        with self._tenants.entered(exchange, caller, request.num_tokens):
            return await self._serve_in_turn(exchange, request)

    async def _serve_in_turn(
        self, exchange: Exchange, request: RoutedRequest
    ) -> Response | ResponseStream:
        admission = self._fleet.admission
        if admission.is_open:
            return await self._serve_now(exchange, request)
        standing = self._standing_of(exchange)
        max_wait_s = max_wait_s_of(exchange.client_headers)
        turn = admission.enter(standing, request.num_tokens, exchange.poke, max_wait_s)
        try:
            if not turn.has_come:
                await wait_for_turn(turn, exchange, admission)
            return await self._serve_now(exchange, request)
        finally:
            turn.leave()

    def _standing_of(self, exchange: Exchange) -> Standing:
        generation, caller = exchange.generation, exchange.caller
        if caller is None:
            return standing_of(generation, exchange.client_headers, self._config.tenant_header)
        return Standing(
            tenant=caller.tenant, priority=priority_of(generation), weight=caller.rules.weight
        )

    def _shape_of(self, exchange: Exchange) -> RoutedRequest:
        """Looked into no deeper than somebody asks."""
        placement, caller = self._fleet.placement, exchange.caller
        counts_tokens = caller is not None and caller.rules.tokens_per_minute is not None
        if self._fleet.admission.is_open and not placement.needs_shapes and not counts_tokens:
            return UNKNOWN_REQUEST
        return shape_of(
            exchange.generation,
            exchange.client_headers,
            with_prefix=placement.needs_prefixes,
            with_session=placement.needs_sessions,
        )

    async def _serve_now(
        self, exchange: Exchange, request: RoutedRequest
    ) -> Response | ResponseStream:
        """At once, or when a worker is there again."""
        try:
            return await self._serve_first(exchange, request)
        except (NoWorker, LegRefused) as failure:
            if exchange.num_resumes > 0 or not await self._came_back(exchange, failure):
                raise
        return await self._serve_first(exchange, request)

    async def _came_back(self, exchange: Exchange, failure: NoWorker | LegRefused) -> bool:
        """Wait for a worker that is known and away, as many requests as may wait for their turn."""
        is_full = self._num_lingering >= self._fleet.admission.rules.max_waiting
        if is_full or (isinstance(failure, NoWorker) and failure.num_known == 0):
            return False
        limit_s, max_wait_s = self._config.worker_wait_s, max_wait_s_of(exchange.client_headers)
        if max_wait_s is not None:
            limit_s = min(limit_s, max_wait_s)
        self._num_lingering += 1
        try:
            return await self._until_somebody_is_there(exchange, Setbacks(), limit_s)
        finally:
            self._num_lingering -= 1

    async def _serve_first(
        self, exchange: Exchange, request: RoutedRequest
    ) -> Response | ResponseStream:
        """On as many workers, one after another, as fail it."""
        try:
            return await self._serve_once(exchange, request, None)
        except LegFailure as failure:
            if not exchange.can_resume_after(failure):
                raise
            broken = failure
        return await self._serve_on(exchange, request, broken)

    async def _serve_on(
        self, exchange: Exchange, request: RoutedRequest, broken: LegFailure
    ) -> Response | ResponseStream:
        """On others, after the first failure."""
        setbacks = Setbacks()
        for _ in range(self._config.max_resumes):
            for worker in broken.suspects:
                setbacks.note(worker)
            exchange.resume()
            try:
                await self._until_somebody_is_there(exchange, setbacks, self._config.worker_wait_s)
                return await self._serve_once(exchange, request, setbacks)
            except NoWorker:
                break
            except LegFailure as failure:
                if not exchange.can_resume_after(failure, is_first=False):
                    raise
                broken = failure
        self._fleet.metrics.resumes.labels("given_up").inc()
        raise broken

    async def _until_somebody_is_there(
        self, exchange: Exchange, setbacks: Setbacks, limit_s: float
    ) -> bool:
        """A worker that restarts needs some seconds. False: nobody came within the limit."""
        fleet = self._fleet

        def is_somebody_there() -> bool:
            return fleet.can_plan(setbacks.shunned(fleet.placement.has_usable))

        if is_somebody_there():
            return True
        if limit_s == 0:
            return False
        _log.info("waiting for a worker", request_id=exchange.request_id, limit_s=limit_s)
        with fleet.watching(exchange.poke, limit_s) as is_late:
            while not is_somebody_there():
                if is_late():
                    return False
                await exchange.until(lambda: is_somebody_there() or is_late())
        return True

    async def _serve_once(
        self, exchange: Exchange, request: RoutedRequest, setbacks: Setbacks | None
    ) -> Response | ResponseStream:
        tried = set(setbacks.shunned(self._fleet.placement.has_usable)) if setbacks else set()
        refusal: LegRefused | None = None
        for _ in range(self._config.max_attempts):
            try:
                plan = self._fleet.plan(request, tried)
            except NoWorker as nobody:
                raise refusal or nobody from None
            if refusal is not None:
                self._fleet.metrics.retries.inc()
            self._note_plan(exchange, plan)
            try:
                return await self._attempt(exchange, request, plan.workers)
            except LegRefused as error:
                tried.add(error.worker.id)
                refusal = error
                exchange.begin_again()
        assert refusal is not None, "max_attempts is at least 1"
        raise refusal

    def _note_plan(self, exchange: Exchange, plan: Plan) -> None:
        exchange.note_attempt(plan)
        exposes = self._config.expose_routing
        if exposes or plan.split_reason is not None:
            exchange.add_headers({ROUTE_HEADER: route_text(plan, exposes)})

    def _attempt(
        self, exchange: Exchange, request: RoutedRequest, workers: list[Worker]
    ) -> Coroutine[Any, Any, Response | ResponseStream]:
        if len(workers) == 1:
            return self._serve_on_one(exchange, request, workers[0])
        prefill, decode = workers
        return serve_on_pair(exchange, request, prefill, decode, self._fleet, self._wire)

    async def _serve_on_one(
        self, exchange: Exchange, request: RoutedRequest, worker: Worker
    ) -> Response | ResponseStream:
        generation = exchange.generation
        leg = self._wire.start_answer(
            worker,
            request,
            generation.route,
            generation.body,
            exchange.header_lines,
            exchange.poke,
            is_alone=True,
        )
        leg.may_move = exchange.may_retry
        try:
            await exchange.until(lambda: leg.has_answer or leg.failure is not None)
            if not leg.has_answer:
                assert leg.failure is not None
                raise leg.failure
            if leg.is_stream:
                self._fleet.note_first_byte(leg.visit)
            return await exchange.deliver(leg, None)
        finally:
            leg.abort()
