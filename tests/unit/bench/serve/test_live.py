"""The line of progress."""

import asyncio
import io

from baton.bench.serve.live import Live
from baton.bench.serve.records import Record


def test_the_line_counts_what_it_is_told() -> None:
    live = Live("load", 10, stream=None)
    for _ in range(4):
        live.on_start()
    live.on_end(Record(0, 0, 0.0))
    assert live.line(1234, 5.2) == "load:    5 s, 1 of 10 ended, 3 running, 1,234 tokens/s"
    live.on_end(Record(1, 0, 0.0, error="broke"))
    assert live.line(0, 6.0) == "load:    6 s, 2 of 10 ended, 1 failed, 2 running, 0 tokens/s"


def test_it_leaves_a_clean_line() -> None:
    stream = io.StringIO()

    async def begin_and_end() -> None:
        showing = asyncio.create_task(Live("load", 1, stream=stream).show())
        await asyncio.sleep(0)
        showing.cancel()
        await asyncio.wait([showing])

    asyncio.run(begin_and_end())
    assert stream.getvalue() == "\r\x1b[K"
