"""Server-sent events: written the moment they exist, never buffered on the way.

Invariant: nothing goes out before the first event, so a request that fails before it can still
answer with its own HTTP status.
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

    async def send(self, events: Sequence[bytes]) -> None:
        """Write events with one write. Raises ConnectionError when the client is gone."""
        if not events:
            return
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self.response.write(b"".join(b"data: " + event + b"\n\n" for event in events))

    async def finish(self) -> None:
        await self.response.write_eof()
