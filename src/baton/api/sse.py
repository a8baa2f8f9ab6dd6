"""Server-sent events: written the moment they exist, never buffered on the way.

Invariant: nothing goes out before the first event, so a request that fails before it can still
answer with its own HTTP status.
Elsewhere: marks between events (marks.py).
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

DONE: Final = b"[DONE]"


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

    async def send(self, events: Sequence[bytes], mark: bytes = b"") -> None:
        """Write events, and the comment behind them, with one write. Raises ConnectionError when
        the client is gone."""
        if not events:
            return
        if not self.response.prepared:
            await self.response.prepare(self._request)
        written = b"".join(b"data: " + event + b"\n\n" for event in events)
        await self.response.write(written + mark)

    async def finish(self) -> None:
        await self.response.write_eof()
