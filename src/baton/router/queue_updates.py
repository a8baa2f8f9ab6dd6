"""What a waiting client may say and be told: how long it can wait, and where in the line it is.

A client that asks for it gets its stream's head at once, and a comment every second while it waits:

    : queued position=3 estimate=2.5s

Comments are no events, so every reader of event streams skips them. The price is the status: what
goes wrong afterwards is an event inside a 200. So it is opt-in, per request.
Invariant: a client that does not read is written nothing more.
Elsewhere: the line (waiting.py), whose turn it is (admission.py).
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from baton.core.errors import RequestError
from baton.router.admission import Admission, Turn
from baton.router.exchange import Exchange

UPDATES_HEADER: Final = "x-baton-queue-updates"
DEADLINE_HEADER: Final = "x-baton-deadline-ms"
UPDATE_S: Final = 1.0


def max_wait_s_of(headers: Mapping[str, str]) -> float | None:
    """Within what time the client's turn must come, if it says so; raises RequestError."""
    given = headers.get(DEADLINE_HEADER)
    if given is None:
        return None
    if not given.isdecimal() or not given.isascii() or not int(given[:10]) >= 1 or len(given) > 9:
        raise RequestError(
            f"X-Baton-Deadline-Ms is {given[:40]!r}; it must be a whole number of milliseconds "
            "from 1 to 999999999",
            param="X-Baton-Deadline-Ms",
        )
    return int(given) / 1000


async def wait_for_turn(turn: Turn, exchange: Exchange, admission: Admission) -> None:
    """Raises TurnedAway or Expired."""
    updates = QueueUpdates(turn, exchange, admission) if _wants_updates(exchange) else None
    try:
        while not turn.has_come:
            if updates is not None:
                updates.tell()
            await exchange.changed()
    finally:
        if updates is not None:
            updates.close()
        exchange.note_waited()


class QueueUpdates:
    """One client's comments; `tell` whenever it was woken."""

    def __init__(self, turn: Turn, exchange: Exchange, admission: Admission):
        self._turn = turn
        self._exchange = exchange
        self._admission = admission
        self._timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        position, estimate_s = self._admission.outlook(self._turn)
        estimate = "" if estimate_s is None else f" estimate={estimate_s:.1f}s"
        self._exchange.comment(b": queued position=%d%b\n\n" % (position, estimate.encode()))
        self.close()
        self._timer = asyncio.get_running_loop().call_later(UPDATE_S, self._exchange.poke)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _wants_updates(exchange: Exchange) -> bool:
    return exchange.client_headers.get(UPDATES_HEADER) == "1" and exchange.generation.is_stream
