"""How late the event loop wakes."""

import asyncio
import time

from baton.bench.serve.wake_meter import WakeMeter


def test_a_loop_that_is_kept_from_waking_is_seen() -> None:
    async def hold_up() -> list[float]:
        meter = WakeMeter()
        measuring = asyncio.create_task(meter.run())
        await asyncio.sleep(0)
        held_until_s = time.perf_counter() + 0.1
        while time.perf_counter() < held_until_s:
            pass
        await asyncio.sleep(0.02)  # is due after the meter's
        measuring.cancel()
        await asyncio.wait([measuring])
        return meter.late_ms

    late_ms = asyncio.run(hold_up())
    assert late_ms[0] >= 70  # 100 less the period of 20, with room for a coarse clock
