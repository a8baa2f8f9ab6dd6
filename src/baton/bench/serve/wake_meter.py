"""How late the client's event loop wakes: what a token that arrives may have to wait until its time
is taken.

Few requests tell little about that by their sending; this asks 50 times a second.
Elsewhere: what follows from it (report.py).
"""

import asyncio
import time
from typing import Final

_PERIOD_S: Final = 0.02


class WakeMeter:
    """`late_ms` are the delays so far, one for each period."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            due_s = time.perf_counter() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            # The loop's clock has steps of a millisecond, and may be early by less than one.
            self.late_ms.append(max(0.0, (time.perf_counter() - due_s) * 1e3))
