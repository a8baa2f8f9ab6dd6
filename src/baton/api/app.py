"""The worker's HTTP application.

    launch ── ServerState ──> make_app ──> make_runner ──> sockets

Elsewhere: the path of a generation request (generation.py), what is served (routes_*.py).
"""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from baton.api.middleware import exchange, sign_response
from baton.api.routes_explaining import add_explaining_routes
from baton.api.routes_openai import add_openai_routes
from baton.api.routes_sglang import add_sglang_routes
from baton.api.routes_status import add_status_routes
from baton.api.state import SERVICE, ServerState, Service


def make_app(state: ServerState) -> web.Application:
    """Every route of a worker. Serve it with `make_runner`, which notices clients that leave."""
    app = web.Application(middlewares=[exchange], client_max_size=state.config.max_body_bytes)
    app[SERVICE] = Service(state)
    app.on_response_prepare.append(sign_response)
    add_openai_routes(app)
    add_sglang_routes(app)
    add_status_routes(app)
    add_explaining_routes(app)
    return app


def make_runner(app: web.Application, shutdown_timeout_s: float = 5.0) -> web.AppRunner:
    """A runner that cancels a handler the moment its client is gone, streaming or not."""
    return web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=_quiet_http_logger(),
        shutdown_timeout=shutdown_timeout_s,
    )


def _quiet_http_logger() -> logging.Logger:
    logger = logging.getLogger("baton.api.http")
    if not any(isinstance(known, _BadClientsAreNotErrors) for known in logger.filters):
        logger.addFilter(_BadClientsAreNotErrors())
    return logger


class _BadClientsAreNotErrors(logging.Filter):
    """Bytes that are not HTTP/1.1 (port scans, TLS, the HTTP/2 preface of SGLang's router) are one
    debug line, not a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError):
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        record.exc_info = None
        record.msg, record.args = "not HTTP/1.1: %s", (" ".join(str(error).split())[:200],)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
