"""From a request to the workers that serve it, and on to others where that is safe.

Another attempt is made only when a connection was refused: nothing was sent to that worker, and
the other leg, if any, was cancelled before the client saw a byte.
Elsewhere: one attempt (pair.py for two workers, here for one), policies (policies.py).
"""

from baton.router.config import RouterConfig, WorkerRole
from baton.router.errors import LegRefused, NoWorker
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.http.messages import Response
from baton.router.http.stream import ResponseStream
from baton.router.legs import Wire
from baton.router.pair import serve_on_pair
from baton.router.workers import Worker


class Dispatcher:
    def __init__(self, config: RouterConfig, fleet: Fleet, wire: Wire):
        self._config = config
        self._fleet = fleet
        self._wire = wire

    async def serve(self, exchange: Exchange) -> Response | ResponseStream:
        """Answer the request; raises RouterFailure."""
        tried: set[str] = set()
        refusal: LegRefused | None = None
        for _ in range(self._config.max_attempts):
            try:
                workers = [self._fleet.pick(role, tried) for role in self._config.roles]
            except NoWorker as nobody:
                raise refusal or nobody from None
            if refusal is not None:
                self._fleet.metrics.retries.inc()
            try:
                return await self._attempt(exchange, workers)
            except LegRefused as error:
                tried.add(error.worker.id)
                refusal = error
        assert refusal is not None, "max_attempts is at least 1"
        raise refusal

    async def _attempt(
        self, exchange: Exchange, workers: list[Worker]
    ) -> Response | ResponseStream:
        if workers[0].role is WorkerRole.REGULAR:
            return await self._serve_on_one(exchange, workers[0])
        prefill, decode = workers
        return await serve_on_pair(exchange, prefill, decode, self._fleet, self._wire)

    async def _serve_on_one(self, exchange: Exchange, worker: Worker) -> Response | ResponseStream:
        generation = exchange.generation
        leg = self._wire.start_answer(
            worker, generation.route, generation.body, exchange.header_lines, exchange.poke
        )
        try:
            while not leg.has_answer:
                if leg.failure is not None:
                    raise leg.failure
                await exchange.changed()
            return await exchange.deliver(leg, None)
        finally:
            leg.abort()
