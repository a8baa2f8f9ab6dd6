"""A running router: listening, and going away without dropping what runs.

On SIGTERM or SIGINT: no new connections, running requests get the grace period, what still runs
then ends with an error that says so. A second signal ends the grace period at once.
Elsewhere: argv (launch/router.py), routes (app.py).
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from baton.core.errors import ConfigError
from baton.core.stop_requests import StopRequests
from baton.obs.logs import EventLog
from baton.router.app import RouterApp
from baton.router.config import RouterConfig
from baton.router.generation import GenerationHandlers
from baton.router.http.connection import Limits
from baton.router.http.server import HttpServer
from baton.router.tls import context_for_clients

_log = EventLog("baton.router")

LAST_WORDS_S = 2.0
"""Time for requests that were ended to send their error, and for connections to close."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run_router(
    config: RouterConfig,
    *,
    ready: Callable[[int], None] | None = None,
    stop: StopRequests | None = None,
    read_again: Callable[[], RouterConfig] | None = None,
) -> None:
    """Serve until asked to stop. `ready` gets the port as soon as it listens. Without `stop`,
    SIGTERM and SIGINT are taken over (main thread only), and so is SIGHUP with `read_again`, which
    gives the configuration to change to. Raises ConfigError if the address cannot be listened
    on."""
    app = RouterApp(config)
    async with app.running():
        server = HttpServer(app, Limits(body_bytes=config.max_payload_bytes))
        try:
            with _stop_requests(stop) as asked_to, _reload_requests(app, read_again):
                port = await _listen(server, config)
                if ready is not None:
                    ready(port)
                await asked_to.asked.wait()
                await _wind_down(server, app.generation, asked_to, config.shutdown_grace_s)
        finally:
            await server.close(LAST_WORDS_S)


async def _listen(server: HttpServer, config: RouterConfig) -> int:
    tls = context_for_clients(config.tls)
    try:
        return await server.listen(config.host, config.port, tls)
    except OSError as error:
        raise ConfigError(
            f"--host {config.host} --port {config.port} cannot be listened on: "
            f"{error.strerror or error}; use another port, or 0 for any free one"
        ) from error


async def _wind_down(
    server: HttpServer, generation: GenerationHandlers, asked_to: StopRequests, grace_s: float
) -> None:
    generation.refuse_new()
    server.stop_listening()
    _log.info("stopping", num_running=generation.num_running, grace_s=grace_s)
    ends = {
        asyncio.create_task(generation.idle.wait()),
        asyncio.create_task(asked_to.asked_again.wait()),
    }
    await asyncio.wait(ends, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    if generation.num_running:
        _log.warning("grace period is over", num_ended=generation.num_running)
        generation.stop_running()


@contextlib.contextmanager
def _reload_requests(
    app: RouterApp, read_again: Callable[[], RouterConfig] | None
) -> Iterator[None]:
    if read_again is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, app.reloading.reload, read_again)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


@contextlib.contextmanager
def _stop_requests(given: StopRequests | None) -> Iterator[StopRequests]:
    if given is not None:
        yield given
        return
    asked_to, loop = StopRequests(), asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, asked_to.ask)
    try:
        yield asked_to
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
