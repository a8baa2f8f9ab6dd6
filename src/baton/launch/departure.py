"""How a worker leaves: says so, finishes what runs, then goes.

    SIGTERM ─> health says "draining", routers are told ─> nothing runs any more ─> gone
                                     grace period over, or a second SIGTERM ──^

It goes on listening meanwhile: the other leg of a hand-over, and what a router sent before it
heard, still come and are served.
Invariant: a worker with nothing to do, that nobody was told of, ends at once.
Elsewhere: what is said (cluster/announcer.py), signals (server.py), health (api/routes_status.py).
"""

import asyncio
from collections.abc import Callable
from typing import Final

from baton.cluster.announcer import Announcer
from baton.core.stop_requests import StopRequests
from baton.obs.logs import event_log

log = event_log("worker")

QUIET_S: Final = 0.3
"""Nothing may have run for so long: time for what was on its way when the routers were told."""

NOTICE_S: Final = 1.5
"""At least so long a busy worker stays, so that routers which ask once a second see it drain."""

_LOOK_S: Final = 0.05


async def depart(
    stop: StopRequests, announcer: Announcer, count_running: Callable[[], int], grace_s: float
) -> None:
    """Returns when nothing runs any more, or the time is up."""
    log.info("draining", num_running=count_running(), grace_s=grace_s)
    done = asyncio.ensure_future(_tell_and_finish(announcer, count_running))
    again = asyncio.ensure_future(stop.asked_again.wait())
    await asyncio.wait({done, again}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in (done, again):
        wait.cancel()
    await asyncio.gather(done, again, return_exceptions=True)
    if left := count_running():
        log.warning("grace period is over", num_ended=left)
    await announcer.leave()


async def _tell_and_finish(announcer: Announcer, count_running: Callable[[], int]) -> None:
    was_busy = count_running() > 0
    num_told = await announcer.say_draining()
    if was_busy or num_told or count_running():
        await _idle(count_running, NOTICE_S if was_busy else 0.0)


async def _idle(count_running: Callable[[], int], least_s: float) -> None:
    """Returns when nothing has run for QUIET_S, and `least_s` have passed."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + least_s
    quiet_since_s = loop.time()
    while loop.time() < max(end_s, quiet_since_s + QUIET_S):
        await asyncio.sleep(_LOOK_S)
        if count_running():
            quiet_since_s = loop.time()
