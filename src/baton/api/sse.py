"""Server-sent events: written the moment they exist, never buffered on the way.

Invariant: nothing goes out before the first event, so a request that fails before it can still
answer with its own HTTP status.
Elsewhere: what a router does with marks (router/marks.py).
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

DONE: Final = b"[DONE]"
MARKS_HEADER: Final = "X-Baton-Marks"
"""A router asks for marks with it; the answer has what `resume` needs beside the token ids: seed,
time of creation, id."""


class EventStream:
    """One SSE response. `send` waits until the client keeps up."""

    def __init__(self, request: web.Request):
        self._request = request
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )

    @property
    def has_started(self) -> bool:
        return self.response.prepared

    async def send(self, events: Sequence[bytes], marked_ids: Sequence[int] = ()) -> None:
        """Write events with one write. Raises ConnectionError when the client is gone.
        `marked_ids`: a comment behind them says which output tokens they have brought the stream
        to."""
        if not events:
            return
        if not self.response.prepared:
            await self.response.prepare(self._request)
        written = b"".join(b"data: " + event + b"\n\n" for event in events)
        if marked_ids:
            written += b": t %b\n\n" % b" ".join(b"%d" % token_id for token_id in marked_ids)
        await self.response.write(written)

    async def finish(self) -> None:
        await self.response.write_eof()
