"""A running router: listening, and going away without dropping what runs.

On SIGTERM or SIGINT: no new connections, running requests get the grace period, what still runs
then ends with an error that says so. A second signal ends the grace period at once.
Elsewhere: argv (launch/router.py), routes (app.py).
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from baton.core.errors import ConfigError
from baton.obs.logs import EventLog
from baton.router.app import GENERATION, make_router_app
from baton.router.config import RouterConfig
from baton.router.generation import GenerationHandlers

_log = EventLog("baton.router")
_http_log = logging.getLogger("baton.router.http")

LAST_WORDS_S = 2.0
"""Time for requests that were ended to send their error, and for connections to close."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _QuietAboutNoise(logging.Filter):
    """Port scanners, HTTP/2 and TLS greetings are not errors of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


class StopRequests:
    """How often we were asked to stop, from signals or from the program around us."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.asked_again = asyncio.Event()

    def ask(self) -> None:
        (self.asked_again if self.asked.is_set() else self.asked).set()


async def run_router(
    config: RouterConfig,
    *,
    ready: Callable[[int], None] | None = None,
    stop: StopRequests | None = None,
) -> None:
    """Serve until asked to stop. `ready` gets the port as soon as it listens. Without `stop`,
    SIGTERM and SIGINT are taken over (main thread only). Raises ConfigError if the address
    cannot be listened on."""
    app = make_router_app(config)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=_http_log,
        shutdown_timeout=LAST_WORDS_S,
    )
    quiet = _QuietAboutNoise()
    _http_log.addFilter(quiet)
    try:
        await runner.setup()
        with _stop_requests(stop) as asked_to:
            site = await _listen(runner, config)
            if ready is not None:
                ready(_port_of(runner))
            await asked_to.asked.wait()
            await _wind_down(site, app[GENERATION], asked_to, config.shutdown_grace_s)
    finally:
        await runner.cleanup()
        _http_log.removeFilter(quiet)


async def _listen(runner: web.AppRunner, config: RouterConfig) -> web.TCPSite:
    site = web.TCPSite(runner, config.host, config.port)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(
            f"--host {config.host} --port {config.port} cannot be listened on: "
            f"{error.strerror or error}; use another port, or 0 for any free one"
        ) from error
    return site


def _port_of(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])


async def _wind_down(
    site: web.TCPSite, generation: GenerationHandlers, asked_to: StopRequests, grace_s: float
) -> None:
    generation.refuse_new()
    await site.stop()
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
