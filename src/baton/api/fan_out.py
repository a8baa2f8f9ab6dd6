"""Runs all samples of a request side by side, as one stream of pieces.

Invariant: when the stream ends, fails or is left, every sample of the request has ended: one
failure aborts the others.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from baton.api.sample_stream import Piece

Stream = AsyncGenerator[Piece, None]

# Deep enough that a sample rarely waits for its siblings, small enough that a slow client's
# backlog stays with the engine client, which bounds it.
QUEUED_PIECES_PER_SAMPLE = 4


async def merge(streams: Sequence[Stream]) -> Stream:
    """Pieces as they arrive; those of one sample stay in order. Raises what a stream raises."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(
        maxsize=QUEUED_PIECES_PER_SAMPLE * len(streams)
    )
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        num_running = len(streams)
        while num_running:
            item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(stream: Stream, queue: "asyncio.Queue[Piece | Exception | None]") -> None:
    """Move one sample's pieces into the queue, then None; an error takes the place of both."""
    try:
        async with aclosing(stream):
            async for piece in stream:
                await queue.put(piece)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
