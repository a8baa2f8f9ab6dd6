"""Around every handler: an id, a check of the key, errors as JSON, one log line.

Invariant: no exception but a cancellation leaves this layer.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from baton.api.errors import CLIENT_CLOSED, error_response, is_expected
from baton.api.generation import ARRIVED_S, TIMELINE, TOKEN_COUNTS
from baton.api.request_id import HEADER, REQUEST_ID, assign_request_id
from baton.api.routes_status import STATUS_PATHS
from baton.api.state import SERVICE, Service
from baton.core.errors import RequestError
from baton.obs.logs import event_log

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = event_log("api")

# Probes of load balancers and scrapers carry no key, in SGLang as here.
_OPEN_PATHS: Final = frozenset({"/health", "/liveness", "/health_generate", "/metrics"})


@web.middleware
async def exchange(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one middleware."""
    service = request.app[SERVICE]
    request_id = assign_request_id(request)
    start_s = request[ARRIVED_S] = service.state.clock.now_s()
    status = CLIENT_CLOSED
    try:
        response = await _answer(request, handler, service)
        status = response.status
    finally:
        # A cancelled handler means that the client is gone: there is nobody to answer.
        route = _route(request)
        service.metrics.http_response(route, status)
        now_s = service.state.clock.now_s()
        if TIMELINE in request:
            request[TIMELINE].end(now_s, f"HTTP {status}")
        # Routers and scrapers ask every few seconds, which would drown what clients do.
        is_routine = request.method == "GET" and route in STATUS_PATHS
        write = log.debug if is_routine else log.info
        write(
            "request",
            request_id=request_id,
            method=request.method,
            path=request.path,
            status=status,
            seconds=now_s - start_s,
            **_token_fields(request),
        )
    return response


def _token_fields(request: web.Request) -> dict[str, int]:
    if TOKEN_COUNTS not in request:
        return {}
    counts = request[TOKEN_COUNTS]
    return {
        "prompt_tokens": counts.prompt,
        "cached_tokens": counts.cached,
        "new_tokens": counts.completion,
    }


async def sign_response(request: web.Request, response: web.StreamResponse) -> None:
    """Runs before any response's headers go out, streams included."""
    if REQUEST_ID not in request:  # refused before the middleware, such as an unknown Expect
        assign_request_id(request)
    response.headers[HEADER] = request[REQUEST_ID]
    response.headers["Server"] = "baton"


async def _answer(request: web.Request, handler: Handler, service: Service) -> web.StreamResponse:
    try:
        _check_key(request, service.state.config.api_key)
        return await handler(request)
    except web.HTTPException as error:
        return error_response(_named(error, request))
    except Exception as error:
        if isinstance(error, ConnectionError) and _client_is_gone(request):
            return web.Response(status=CLIENT_CLOSED)  # for the log: nobody will read it
        if not is_expected(error):
            log.error("handler failed", exc=error, request_id=request[REQUEST_ID])
        return error_response(error)


def _client_is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _named(error: web.HTTPException, request: web.Request) -> Exception:
    """The errors of aiohttp's own routing, saying what was asked for."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return RequestError(
            f"{request.method} is not allowed on {request.path}; use {allowed}",
            status=405,
            code="method_not_allowed",
        )
    if error.status == 404:
        return RequestError(f"there is no {request.path} here", status=404, code="unknown_path")
    return error


def _check_key(request: web.Request, api_key: str | None) -> None:
    if api_key is None or request.path in _OPEN_PATHS:
        return
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), api_key.encode()):
        raise RequestError(
            "the Authorization header does not carry this server's API key; send "
            "'Authorization: Bearer <key>'",
            status=401,
            code="invalid_api_key",
        )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"
