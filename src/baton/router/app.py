"""The router's application: its routes, its guard, and the life of its parts.

Invariant: whatever happens, the answer has OpenAI's error shape and an X-Request-ID.
Elsewhere: handlers (generation.py, admin.py), HTTP (http/), listening and signals (server.py).
"""

import contextlib
from collections.abc import AsyncIterator, Callable

from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import ConfigError, RequestError
from baton.messages.announcement import ANNOUNCE_PATH
from baton.obs.logs import EventLog
from baton.router import openapi
from baton.router.admin import AdminHandlers
from baton.router.announcements import Announcements
from baton.router.config import RouterConfig
from baton.router.errors import Problem, RouterFailure
from baton.router.exchange import REQUEST_ID, problem_response, request_id_of
from baton.router.explaining import ExplainingHandlers
from baton.router.fleet import FLEET_FIELDS, Fleet
from baton.router.generation import GenerationHandlers, problem_of
from baton.router.guard import guard_of
from baton.router.health import HealthMonitor
from baton.router.http.client import UpstreamPool
from baton.router.http.messages import Request, Response
from baton.router.http.routes import NoMethod, NoRoute, Routes
from baton.router.http.stream import ResponseStream
from baton.router.keys import Callers, KeyTable
from baton.router.legs import Wire
from baton.router.reload import Reloading
from baton.router.reload_workers import ConfiguredWorkers
from baton.router.requests import GENERATION_ROUTES
from baton.router.tenants import TenantGate
from baton.router.tls import context_for_workers
from baton.router.trace_context import trace_id_of

_log = EventLog("baton.router")

KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, SGLang's server, closes idle connections: a request must
not meet a connection that is just being closed."""


class RouterApp:
    """Answers requests while `running`."""

    def __init__(self, config: RouterConfig, clock: Clock | None = None):
        self._config = config
        self._clock = clock or MonotonicClock()
        self._keys = None
        if config.callers is not None:
            self._keys = KeyTable(config.callers, config.api_key)
        self._guard = guard_of(config, self._keys)
        self._tenants = TenantGate(self._clock, config.waiting.low_values_first)
        self.fleet = Fleet(config, self._clock)
        self._wire = Wire(self.fleet, config.prefill_drain_limit_s, config.resume_stall_s)
        self.fleet.give_up_on = self._wire.give_up_on
        if self._keys is not None:
            self.fleet.metrics.watch_tenants(self._tenants.metrics())
        self.generation = GenerationHandlers(
            config, self.fleet, self._wire, self._clock, self._tenants
        )
        self._announcements = Announcements(config, self.fleet, self._clock)
        self.reloading = self._reloading(config)
        self._routes = _routes(self.generation, AdminHandlers(config, self.fleet, self._wire))
        self._routes.add("POST", ANNOUNCE_PATH, self._announcements.handle)
        explaining = ExplainingHandlers(
            self.fleet,
            self._wire,
            self.generation,
            self._clock,
            config.authorization_of_workers,
        )
        _add_explaining_routes(self._routes, explaining)

    def _reloading(self, config: RouterConfig) -> Reloading:
        """Whatever can be changed while serving is named here."""
        reloading = Reloading(config)
        workers = ConfiguredWorkers(config, self.fleet, self._announcements.is_leased)
        reloading.add(("workers",), workers.prepare)
        reloading.add(FLEET_FIELDS, lambda new: lambda: self.fleet.follow(new))
        if self._keys is not None:
            reloading.add(("callers",), self._prepare_keys)
        return reloading

    def _prepare_keys(self, new: RouterConfig) -> Callable[[], None]:
        callers = new.callers
        if callers is None:
            raise ConfigError("--api-keys is gone; restart the router to serve without keys")
        return lambda: self.replace_keys(callers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The life of all connections to workers."""
        connections = UpstreamPool(
            self._config.connect_timeout_s, KEEPALIVE_S, context_for_workers(self._config.tls)
        )
        self._wire.attach(connections)
        self.fleet.attach(self._monitor(connections))
        try:
            yield
        finally:
            self._announcements.close()
            await self.fleet.close()
            self.generation.close()
            self._wire.close()
            await connections.close()

    def admit(self, request: Request) -> Response | None:
        """Ask for the key: the bodies of those without it are not read."""
        problem = None if self._guard is None else self._guard.problem_with(request)
        return None if problem is None else _told(request, problem)

    def replace_keys(self, callers: Callers) -> None:
        """From now on these keys count, and no others beside --api-key; what runs runs on."""
        assert self._keys is not None, "a router without a file of keys has none to replace"
        self._keys.replace(callers)
        self._tenants.keep_only(self._keys.tenants)

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
            return _told(request, problem_of(error))
        except RouterFailure as failure:
            return _told(request, failure.problem)
        except Exception as error:
            request_id = request_id_of(request.headers)
            trace_id = trace_id_of(request.headers)
            _log.error(
                "internal error",
                exc=error,
                request_id=request_id,
                trace_id=trace_id or "none",
                route=request.path,
            )
            return problem_response(_INTERNAL, request_id, trace_id)
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

    def _monitor(self, connections: UpstreamPool) -> HealthMonitor:
        config = self._config
        key = config.authorization_of_probes
        headers = {"Authorization": key} if key else {}
        return HealthMonitor(
            self.fleet.pool,
            connections,
            config.health,
            self._clock,
            config.worker_startup_timeout_s,
            headers,
        )


def _refusal(request: Request | None, status: int, code: str, message: str) -> Response:
    return _told(request, Problem(status=status, code=code, message=message))


def _told(request: Request | None, problem: Problem) -> Response:
    headers = request.headers if request is not None else {}
    return problem_response(problem, request_id_of(headers), trace_id_of(headers))


def _add_explaining_routes(routes: Routes, explaining: ExplainingHandlers) -> None:
    routes.add("GET", "/explain/{request_id:path}", explaining.explain)
    for method in ("GET", "POST"):
        routes.add(method, "/start_profile", explaining.start_profile)
        routes.add(method, "/stop_profile", explaining.stop_profile)


def _routes(generation: GenerationHandlers, admin: AdminHandlers) -> Routes:
    routes = Routes()
    for path in GENERATION_ROUTES:
        routes.add("POST", path, generation.handle)
    for path in ("/health", "/liveness"):
        routes.add("GET", path, admin.health)
    routes.add("GET", "/readiness", admin.readiness)
    routes.add("GET", "/queue", admin.queue)
    routes.add("GET", "/health_generate", admin.health_generate)
    routes.add("GET", "/metrics", admin.metrics)
    routes.add("GET", "/workers", admin.list_workers)
    routes.add("POST", "/workers", admin.add_worker)
    routes.add("GET", "/workers/{worker_id}", admin.get_worker)
    routes.add("PUT", "/workers/{worker_id}", admin.update_worker)
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


_INTERNAL = Problem(
    status=500, code="internal_error", message="the router failed; its log says how"
)
