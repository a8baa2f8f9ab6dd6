"""Calls to other servers over pooled connections.

Invariant: there are at least as many connections being made as calls that wait for one, so that
none waits for ever.
Elsewhere: one connection (upstream.py), what is asked (router/legs.py, router/health.py).
"""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from baton.router.http.origin import Origin
from baton.router.http.upstream import (
    Broken,
    Call,
    NotConnected,
    NotConnectedInTime,
    RawHeaders,
    Receiver,
    UpstreamConnection,
    UpstreamError,
    header_block,
    request_head,
)

_REPEATABLE: Final = frozenset(("GET", "HEAD"))


class UpstreamPool:
    """Connections by origin. `idle_s`: how long one may wait for its next request."""

    def __init__(self, connect_timeout_s: float, idle_s: float, tls: ssl.SSLContext | None = None):
        self.loop = asyncio.get_running_loop()
        self.connections: set[UpstreamConnection] = set()
        self.is_closed = False
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._tls = tls
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._waiting: dict[Origin, deque[Call]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    def send(
        self,
        origin: Origin,
        head: bytes,
        body: bytes,
        receiver: Receiver,
        is_repeatable: bool = False,
    ) -> Call:
        """Send a request (`head` up to the empty line); the receiver hears of its answer later,
        never before this returns."""
        call = Call(self, origin, head, body, receiver, is_repeatable)
        connection = self._take(origin)
        if connection is None:
            self.connect(call)
        else:
            connection.start(call)
        return call

    def _take(self, origin: Origin) -> UpstreamConnection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        oldest_s = self.loop.time() - self._idle_s
        while idle:
            connection = idle.pop()
            if connection.idle_since_s >= oldest_s and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    def put(self, connection: UpstreamConnection) -> None:
        """A connection has nothing to do: whoever waits longest gets it."""
        waiting = self._waiting.get(connection.origin)
        if waiting:
            connection.start(waiting.popleft())
            return
        connection.was_idle = True
        connection.idle_since_s = self.loop.time()
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = []
        idle.append(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(self._idle_s, self._sweep)

    def note_open(self, connection: UpstreamConnection) -> None:
        self.connections.add(connection)

    def note_closed(self, connection: UpstreamConnection) -> None:
        """Perhaps while it waited to be used."""
        self.connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
        if not self.connections:
            self._emptied.set()

    def no_longer_waits(self, call: Call) -> None:
        """The connection that is being made for it goes to another call, or into the pool."""
        waiting = self._waiting.get(call.origin)
        if waiting and call in waiting:
            waiting.remove(call)

    def _sweep(self) -> None:
        """Close what waited too long; the longest idle come first."""
        self._timer = None
        oldest_s = self.loop.time() - self._idle_s
        for origin, idle in list(self._idle.items()):
            num_old = sum(connection.idle_since_s <= oldest_s for connection in idle)
            old, self._idle[origin] = idle[:num_old], idle[num_old:]
            for connection in old:
                connection.transport.abort()
            if not self._idle[origin]:
                del self._idle[origin]
        if self._idle:
            self._timer = self.loop.call_later(self._idle_s, self._sweep)

    def connect(self, call: Call) -> None:
        """Open a connection for this call, which takes another one that is free earlier."""
        origin = call.origin
        self._waiting.setdefault(origin, deque()).append(call)
        task = self.loop.create_task(self._connect(origin))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, origin: Origin) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=self._context() if origin.is_tls else None,
                )
        except TimeoutError:
            self._fail_oldest(origin, NotConnectedInTime())
        except (OSError, ValueError) as error:  # ValueError: what is no host name
            self._fail_oldest(origin, NotConnected(reason_of(error)))
        else:
            self.put(connection)

    def _fail_oldest(self, origin: Origin, error: NotConnected) -> None:
        """Who waits longest has been waiting for the attempt that failed, or a later one."""
        waiting = self._waiting.get(origin)
        if waiting:
            waiting.popleft().fail(error)
        if not waiting:
            self._waiting.pop(origin, None)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def close(self) -> None:
        """Close all connections; exchanges that still run fail."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft().fail(NotConnected("the router is shutting down"))
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    async def fetch(
        self,
        origin: Origin,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout_s: float,
    ) -> "Fetched":
        """A whole short exchange; raises UpstreamError."""
        collector = _Collector(self.loop)
        block = header_block(headers)
        head = request_head(method.encode(), target.encode("latin-1"), origin, block, len(body))
        call = self.send(origin, head, body, collector, is_repeatable=method in _REPEATABLE)
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.answer
        except TimeoutError:
            raise Broken("it did not answer in time") from None
        finally:
            call.abort()


class Fetched(NamedTuple):
    status: int
    headers: RawHeaders
    body: bytes


class _Collector:
    """Keeps a whole answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.answer: asyncio.Future[Fetched] = loop.create_future()
        self._pieces: list[bytes] = []
        self._status = 0
        self._headers: RawHeaders = ()

    def request_sent(self) -> None:
        """Only the answer matters."""

    def answer_began(self, status: int, headers: RawHeaders) -> None:
        self._status, self._headers = status, headers

    def body_arrived(self, data: bytes) -> None:
        self._pieces.append(data)

    def answer_ended(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Fetched(self._status, self._headers, b"".join(self._pieces)))

    def call_failed(self, error: UpstreamError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def reason_of(error: OSError | ValueError) -> str:
    """One line for people; asyncio's own texts repeat the address, which we name already."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
