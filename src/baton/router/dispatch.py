"""From a request to the workers that serve it, and on to others where that is safe.

Another attempt is made when a connection was refused: nothing was sent to that worker, and the
other leg, if any, was cancelled before the client saw a byte. And when a stream broke that another
worker can go on with (exchange.py says which).
Elsewhere: whose turn it is (admission.py), choosing workers (placement.py), one attempt (pair.py
for two workers, here for one).
"""

from collections.abc import Collection

from baton.router.config import RouterConfig, WorkerRole
from baton.router.errors import LegFailure, LegRefused, NoWorker
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.http.messages import Response
from baton.router.http.stream import ResponseStream
from baton.router.legs import Wire
from baton.router.pair import serve_on_pair
from baton.router.policies import UNKNOWN_REQUEST, RoutedRequest
from baton.router.prompt_shape import shape_of, standing_of
from baton.router.workers import Worker


class Dispatcher:
    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire):
        self._config = config
        self._fleet = fleet
        self._wire = wire

    async def serve(self, exchange: Exchange) -> Response | ResponseStream:
        """Answer the request when its turn has come; raises RouterFailure."""
        admission, request = self._fleet.admission, self._shape_of(exchange)
        if admission.is_open:
            return await self._serve_now(exchange, request)
        standing = standing_of(
            exchange.generation, exchange.client_headers, self._config.tenant_header
        )
        turn = admission.enter(standing, request.num_tokens, exchange.poke)
        try:
            while not turn.has_come:
                await exchange.changed()
            return await self._serve_now(exchange, request)
        finally:
            turn.leave()

    def _shape_of(self, exchange: Exchange) -> RoutedRequest:
        """Looked into no deeper than somebody asks."""
        placement = self._fleet.placement
        if self._fleet.admission.is_open and not placement.needs_shapes:
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
        """On as many workers, one after another, as its stream breaks on."""
        tried: set[str] = set()
        broken: LegFailure | None = None
        for _ in range(1 + self._config.max_resumes):
            try:
                return await self._serve_once(exchange, request, tried)
            except NoWorker as nobody:
                if broken is None:
                    raise nobody
                break
            except LegFailure as failure:
                if not exchange.can_resume_after(failure):
                    raise
                broken, tried = failure, {failure.worker.id}
                exchange.resume()
        assert broken is not None, "the first attempt is always made"
        self._fleet.metrics.resumes.labels("given_up").inc()
        raise broken

    async def _serve_once(
        self, exchange: Exchange, request: RoutedRequest, shunned: Collection[str]
    ) -> Response | ResponseStream:
        tried = set(shunned)
        refusal: LegRefused | None = None
        for _ in range(self._config.max_attempts):
            try:
                workers = self._fleet.plan(request, tried)
            except NoWorker as nobody:
                raise refusal or nobody from None
            exchange.note_attempt(workers, self._fleet.placement)
            if refusal is not None:
                self._fleet.metrics.retries.inc()
            try:
                return await self._attempt(exchange, request, workers)
            except LegRefused as error:
                tried.add(error.worker.id)
                refusal = error
        assert refusal is not None, "max_attempts is at least 1"
        raise refusal

    async def _attempt(
        self, exchange: Exchange, request: RoutedRequest, workers: list[Worker]
    ) -> Response | ResponseStream:
        if workers[0].role is WorkerRole.REGULAR:
            return await self._serve_on_one(exchange, request, workers[0])
        prefill, decode = workers
        return await serve_on_pair(exchange, request, prefill, decode, self._fleet, self._wire)

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
        )
        leg.may_move = exchange.may_resume
        try:
            while not leg.has_answer:
                if leg.failure is not None:
                    raise leg.failure
                await exchange.changed()
            if leg.is_stream:
                self._fleet.note_first_byte(leg.visit)
            return await exchange.deliver(leg, None)
        finally:
            leg.abort()
