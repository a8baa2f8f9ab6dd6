"""The router's application: its routes, its guard, and the life of its parts.

Invariant: whatever happens, the answer has OpenAI's error shape and an X-Request-ID.
Elsewhere: handlers (generation.py, admin.py), HTTP (http/), listening and signals (server.py).
"""

import contextlib
import hmac
from collections.abc import AsyncIterator

from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import RequestError
from baton.obs.logs import EventLog
from baton.router import openapi
from baton.router.admin import AdminHandlers
from baton.router.config import RouterConfig
from baton.router.errors import Problem, RouterFailure
from baton.router.exchange import REQUEST_ID, problem_response, request_id_of
from baton.router.fleet import Fleet
from baton.router.generation import GenerationHandlers, problem_of
from baton.router.health import HealthMonitor
from baton.router.http.client import UpstreamPool
from baton.router.http.messages import Request, Response
from baton.router.http.routes import NoMethod, NoRoute, Routes
from baton.router.http.stream import ResponseStream
from baton.router.legs import Wire
from baton.router.requests import GENERATION_ROUTES

_log = EventLog("baton.router")

KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, SGLang's server, closes idle connections: a request must
not meet a connection that is just being closed."""

OPEN_ROUTES = frozenset(("/health", "/liveness", "/readiness", "/health_generate", "/metrics"))
"""What probes and scrapers ask, without the API key."""


class RouterApp:
    """Answers requests while `running`."""

    def __init__(self, config: RouterConfig, clock: Clock | None = None):
        self._config = config
        self._clock = clock or MonotonicClock()
        self._expected_key = f"Bearer {config.api_key}".encode()
        self.fleet = Fleet(config, self._clock)
        self._wire = Wire(self.fleet, config.prefill_drain_limit_s, config.resume_stall_s)
        self.fleet.give_up_on = self._wire.give_up_on
        self.generation = GenerationHandlers(config, self.fleet, self._wire, self._clock)
        self._routes = _routes(self.generation, AdminHandlers(config, self.fleet, self._wire))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The life of all connections to workers."""
        connections = UpstreamPool(self._config.connect_timeout_s, KEEPALIVE_S)
        self._wire.attach(connections)
        self.fleet.attach(self._monitor(connections))
        try:
            yield
        finally:
            await self.fleet.close()
            self.generation.close()
            self._wire.close()
            await connections.close()

    def admit(self, request: Request) -> Response | None:
        """Ask for the key: the bodies of those without it are not read."""
        if self._config.api_key is None or self._has_key(request):
            return None
        return problem_response(_WRONG_KEY, request_id_of(request.headers))

    async def handle(self, request: Request) -> Response | ResponseStream:
        """Give every error one shape."""
        refusal = self.admit(request)
        if refusal is not None:
            return refusal
        try:
            handler = self._routes.find(request)
            response = await handler(request)
        except NoRoute:
            return _refusal(request, 404, "not_found", f"the router has no route {request.path}")
        except NoMethod as error:
            return self._refuse_method(request, ", ".join(sorted(error.allowed)))
        except RequestError as error:
            return problem_response(problem_of(error), request_id_of(request.headers))
        except RouterFailure as failure:
            return problem_response(failure.problem, request_id_of(request.headers))
        except Exception as error:
            request_id = request_id_of(request.headers)
            _log.error("internal error", exc=error, request_id=request_id, route=request.path)
            return problem_response(_INTERNAL, request_id)
        if isinstance(response, Response) and REQUEST_ID not in response.headers:
            headers = {**response.headers, REQUEST_ID: request_id_of(request.headers)}
            return Response(response.status, response.body, headers)
        return response

    def refuse(self, request: Request | None, status: int, code: str, message: str) -> Response:
        """The answer to what no handler sees, because it is malformed, too large or too slow."""
        if request is not None and request.path in GENERATION_ROUTES:
            self.fleet.metrics.exchanges.note_end(request.path, status, 0.0)
        return _refusal(request, status, code, message)

    def _refuse_method(self, request: Request, allowed: str) -> Response:
        message = f"{request.path} does not take {request.method}; use {allowed}"
        response = _refusal(request, 405, "method_not_allowed", message)
        return Response(405, response.body, {**response.headers, "Allow": allowed})

    def _has_key(self, request: Request) -> bool:
        if request.path in OPEN_ROUTES:
            return True
        given = request.headers.get("authorization", "").encode("latin-1")
        return hmac.compare_digest(given, self._expected_key)

    def _monitor(self, connections: UpstreamPool) -> HealthMonitor:
        config = self._config
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        return HealthMonitor(
            self.fleet.pool,
            connections,
            config.health,
            self._clock,
            config.worker_startup_timeout_s,
            headers,
        )


def _refusal(request: Request | None, status: int, code: str, message: str) -> Response:
    request_id = request_id_of(request.headers if request is not None else {})
    return problem_response(Problem(status=status, code=code, message=message), request_id)


def _routes(generation: GenerationHandlers, admin: AdminHandlers) -> Routes:
    routes = Routes()
    for path in GENERATION_ROUTES:
        routes.add("POST", path, generation.handle)
    for path in ("/health", "/liveness"):
        routes.add("GET", path, admin.health)
    routes.add("GET", "/readiness", admin.readiness)
    routes.add("GET", "/health_generate", admin.health_generate)
    routes.add("GET", "/metrics", admin.metrics)
    routes.add("GET", "/workers", admin.list_workers)
    routes.add("POST", "/workers", admin.add_worker)
    routes.add("GET", "/workers/{worker_id}", admin.get_worker)
    routes.add("DELETE", "/workers/{worker_id}", admin.remove_worker)
    routes.add("GET", "/get_loads", admin.get_loads)
    for path in (
        "/v1/models",
        "/v1/models/{model_id:path}",
        "/get_server_info",
        "/server_info",
        "/get_model_info",
        "/model_info",
    ):
        routes.add("GET", path, admin.ask_one)
    for method in ("GET", "POST"):
        routes.add(method, "/flush_cache", admin.flush_cache)
    routes.add("POST", "/abort_request", admin.abort_request)
    routes.add("GET", openapi.PATH, _describe)
    return routes


async def _describe(_request: Request) -> Response:
    return Response(200, openapi.document(), {"Content-Type": "application/json"})


_WRONG_KEY = Problem(
    status=401,
    code="invalid_api_key",
    message="the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
)
_INTERNAL = Problem(
    status=500, code="internal_error", message="the router failed; its log says how"
)
