"""From a request to the workers that serve it, and on to others where that is safe.

Another attempt is made only when a connection was refused: nothing was sent to that worker, and
the other leg, if any, was cancelled before the client saw a byte.
Elsewhere: whose turn it is (admission.py), choosing workers (placement.py), one attempt (pair.py
for two workers, here for one).
"""

from aiohttp import web

from baton.router.breaker import outcome_in_stream
from baton.router.config import RouterConfig, WorkerRole
from baton.router.errors import LegRefused, NoWorker
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.legs import StreamAnswer, Wire
from baton.router.pair import serve_on_pair
from baton.router.policies import RoutedRequest
from baton.router.prompt_shape import shape_of, standing_of
from baton.router.workers import Worker


class Dispatcher:
    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire):
        self._config = config
        self._fleet = fleet
        self._wire = wire

    async def serve(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the request when its turn has come; raises RouterFailure."""
        request = shape_of(
            exchange.generation,
            exchange.client_headers,
            with_prefix=self._fleet.placement.needs_prefixes,
        )
        standing = standing_of(
            exchange.generation, exchange.client_headers, self._config.tenant_header
        )
        async with self._fleet.admission.turn(standing, request.num_tokens):
            return await self._serve_now(exchange, request)

    async def _serve_now(self, exchange: Exchange, request: RoutedRequest) -> web.StreamResponse:
        tried: set[str] = set()
        refusal: LegRefused | None = None
        for _ in range(self._config.max_attempts):
            try:
                workers = self._fleet.plan(request, tried)
            except NoWorker as nobody:
                raise refusal or nobody from None
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
    ) -> web.StreamResponse:
        if workers[0].role is WorkerRole.REGULAR:
            return await self._serve_on_one(exchange, request, workers[0])
        prefill, decode = workers
        return await serve_on_pair(exchange, request, prefill, decode, self._fleet, self._wire)

    async def _serve_on_one(
        self, exchange: Exchange, request: RoutedRequest, worker: Worker
    ) -> web.StreamResponse:
        generation = exchange.generation
        with self._fleet.counted(worker, request) as visit:
            answer = await self._wire.open_answer(
                worker, generation.route, generation.body, exchange.headers
            )
            if isinstance(answer, StreamAnswer):
                self._fleet.note_first_byte(visit)
            try:
                response = await exchange.deliver(answer, None)
                visit.verdict = outcome_in_stream(exchange.status)
                return response
            finally:
                answer.close()
