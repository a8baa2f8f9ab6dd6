"""The router's aiohttp application: its routes, its guard, and the life of its parts.

Invariant: whatever happens, the answer has OpenAI's error shape and an X-Request-ID.
Elsewhere: handlers (generation.py, admin.py), listening and signals (server.py).
"""

import hmac
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import RequestError
from baton.obs.logs import EventLog
from baton.router.admin import AdminHandlers
from baton.router.config import RouterConfig
from baton.router.errors import Problem, RouterFailure
from baton.router.exchange import REQUEST_ID, problem_response, request_id_of
from baton.router.fleet import Fleet
from baton.router.generation import GenerationHandlers, problem_of
from baton.router.health import HealthMonitor
from baton.router.legs import Wire
from baton.router.requests import GENERATION_ROUTES

_log = EventLog("baton.router")

KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, SGLang's server, closes idle connections: a request must
not meet a connection that is just being closed."""

OPEN_ROUTES = frozenset(("/health", "/liveness", "/readiness", "/health_generate", "/metrics"))
"""What probes and scrapers ask, without the API key."""

FLEET = web.AppKey("FLEET", Fleet)
GENERATION = web.AppKey("GENERATION", GenerationHandlers)


def make_router_app(config: RouterConfig, clock: Clock | None = None) -> web.Application:
    """Serve it with `handler_cancellation=True`: a client that leaves must end its legs."""
    clock = clock or MonotonicClock()
    app = web.Application(
        client_max_size=config.max_payload_bytes, middlewares=[_guard(config.api_key)]
    )
    fleet = Fleet(config, clock)
    wire = Wire(fleet.note_failure)
    generation = GenerationHandlers(config, fleet, wire, clock)
    app[FLEET], app[GENERATION] = fleet, generation
    _add_routes(app, generation, AdminHandlers(config, fleet, wire))

    async def living(_app: web.Application) -> AsyncIterator[None]:
        async with _worker_session(config) as session:
            wire.attach(session)
            fleet.attach(_monitor(config, fleet, session, clock))
            try:
                yield
            finally:
                await fleet.close()

    app.cleanup_ctx.append(living)
    app.on_response_prepare.append(_sign)
    return app


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    """Not the versions of Python and aiohttp, which are nobody's business."""
    response.headers["Server"] = "baton"


def _add_routes(app: web.Application, generation: GenerationHandlers, admin: AdminHandlers) -> None:
    router = app.router
    for path in GENERATION_ROUTES:
        router.add_post(path, generation.handle)
    for path in ("/health", "/liveness"):
        router.add_get(path, admin.health)
    router.add_get("/readiness", admin.readiness)
    router.add_get("/health_generate", admin.health_generate)
    router.add_get("/metrics", admin.metrics)
    router.add_get("/workers", admin.list_workers)
    router.add_post("/workers", admin.add_worker)
    router.add_get("/workers/{worker_id}", admin.get_worker)
    router.add_delete("/workers/{worker_id}", admin.remove_worker)
    router.add_get("/get_loads", admin.get_loads)
    for path in (
        "/v1/models",
        "/v1/models/{model_id:.+}",
        "/get_server_info",
        "/server_info",
        "/get_model_info",
        "/model_info",
    ):
        router.add_get(path, admin.ask_one)
    for method in ("GET", "POST"):
        router.add_route(method, "/flush_cache", admin.flush_cache)
    router.add_post("/abort_request", admin.abort_request)


def _worker_session(config: RouterConfig) -> aiohttp.ClientSession:
    """Answers pass as they are: no decompression, no cookies, no limit but the request's own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
    )


def _monitor(
    config: RouterConfig, fleet: Fleet, session: aiohttp.ClientSession, clock: Clock
) -> HealthMonitor:
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return HealthMonitor(
        fleet.pool, session, config.health, clock, config.worker_startup_timeout_s, headers
    )


def _guard(api_key: str | None) -> Middleware:
    """Asks for the key, and gives every error one shape."""
    expected = f"Bearer {api_key}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request_id_of(request.headers)
        if api_key is not None and request.path not in OPEN_ROUTES:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                return problem_response(_WRONG_KEY, request_id)
        try:
            response = await handler(request)
        except RequestError as error:
            return problem_response(problem_of(error), request_id)
        except RouterFailure as failure:
            return problem_response(failure.problem, request_id)
        except web.HTTPException as error:
            return _refusal(error, request, request_id)
        except Exception as error:
            _log.error("internal error", exc=error, request_id=request_id, route=request.path)
            return problem_response(_INTERNAL, request_id)
        if not response.prepared:
            response.headers.setdefault(REQUEST_ID, request_id)
        return response

    return guard


_WRONG_KEY = Problem(
    status=401,
    code="invalid_api_key",
    message="the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
)
_INTERNAL = Problem(
    status=500, code="internal_error", message="the router failed; its log says how"
)


def _refusal(error: web.HTTPException, request: web.Request, request_id: str) -> web.StreamResponse:
    match error:
        case web.HTTPNotFound():
            code, message = "not_found", f"the router has no route {request.path}"
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            code = "method_not_allowed"
            message = f"{request.path} does not take {request.method}; use {allowed}"
        case web.HTTPRequestEntityTooLarge():
            limit = request.client_max_size
            code = "body_too_large"
            message = f"the body is larger than {limit} bytes (--max-payload-size)"
        case _:
            code, message = "http_error", error.reason
    response = problem_response(
        Problem(status=error.status, code=code, message=message), request_id
    )
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
