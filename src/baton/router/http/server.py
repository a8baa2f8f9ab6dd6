"""Listening, looking after time limits, and closing without dropping what runs.

Elsewhere: one connection (connection.py).
"""

import asyncio
import contextlib
import ssl

from baton.router.http.connection import App, Limits, ServerConnection


class HttpServer:
    """Listens for an `App`. Use within a running event loop."""

    def __init__(self, app: App, limits: Limits):
        self.app = app
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[ServerConnection] = set()
        self.is_closing = False
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """The port it listens on; raises OSError."""
        self._server = await self.loop.create_server(
            lambda: ServerConnection(self), host, port, ssl=tls, backlog=1024
        )
        self._watch()
        return int(self._server.sockets[0].getsockname()[1])

    def note_open(self, connection: ServerConnection) -> None:
        self.connections.add(connection)

    def note_closed(self, connection: ServerConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def stop_listening(self) -> None:
        """No new connections; those without a running request are closed, others after it."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.end_if_idle()

    async def close(self, last_words_s: float) -> None:
        """Running requests get `last_words_s` to end, then they are cancelled."""
        self.stop_listening()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(last_words_s):
                await self._until_empty()
        for connection in list(self.connections):
            connection.end()
        await self._until_empty()
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            await self._server.wait_closed()

    async def _until_empty(self) -> None:
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def _watch(self) -> None:
        now_s = self.loop.time()
        for connection in list(self.connections):
            if connection.deadline_s and connection.deadline_s <= now_s:
                connection.overdue()
        limits = self.limits
        pause_s = min(1.0, min(limits.head_s, limits.stall_s, limits.idle_s) / 4)
        self._timer = self.loop.call_later(pause_s, self._watch)
