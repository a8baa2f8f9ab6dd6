"""Control connections between engines: small typed messages, heartbeats, and news of losses.

It runs an event loop on a thread of its own, so that heartbeats go on while the engine computes.
Outbound peers are named by their address "host:port", one connection each, made when something is
sent; inbound ones by a key that is never used again.

Invariants: a peer's events come in the order PeerConnected, PeerMessage..., PeerLost; PeerLost
comes once per connection (and once per failed attempt to connect), and says that messages sent
since the connection began may not have arrived. To an address whose loss is not acknowledged
nothing is sent: otherwise a message sent just before its PeerLost is read would go out on a new
connection, and be taken for lost. After `close` nothing is reported.
Elsewhere: one connection (peer_connection.py), what the messages mean (disagg/).
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import ConfigError
from baton.ipc.framing import FrameError
from baton.ipc.heartbeat import HeartbeatMonitor
from baton.ipc.peer_connection import MAX_FRAME_BYTES, LostReason, PeerConnection
from baton.messages.codec import Codec
from baton.messages.handover import EngineHello, HandoverMessage

__all__ = ["LostReason", "PeerConnected", "PeerEvent", "PeerLink", "PeerLost", "PeerMessage"]

_log = logging.getLogger(__name__)

_MAX_STRANGERS = 256
"""Inbound connections that have not said hello yet."""
_FLUSH_S = 0.5


@dataclass(frozen=True)
class PeerConnected:
    key: str
    hello: EngineHello


@dataclass(frozen=True)
class PeerMessage:
    key: str
    message: HandoverMessage


@dataclass(frozen=True)
class PeerLost:
    """`detail` is for people: what was seen, with figures."""

    key: str
    reason: LostReason
    detail: str = ""


PeerEvent = PeerConnected | PeerMessage | PeerLost


class PeerLink:
    """Thread-safe; only `close` blocks. `on_event` is called on the link's thread and must be
    quick. `secret` is the cluster's; empty for none. `num_bad_connections` counts those that broke
    the protocol, `num_wrong_secrets` those whose other end did not know the secret."""

    def __init__(
        self,
        codec: Codec[HandoverMessage],
        hello: EngineHello,
        on_event: Callable[[PeerEvent], None],
        bind_host: str,
        bind_port: int = 0,
        *,
        secret: bytes = b"",
        heartbeat_interval_s: float = 1.0,
        max_missed: int = 3,
        connect_timeout_s: float = 5.0,
        max_unsent_bytes: int = 32 << 20,
        clock: Clock | None = None,
    ):
        self._codec = codec
        self._hello = hello
        self._secret = secret
        self._on_event = on_event
        self._heartbeat_interval_s = heartbeat_interval_s
        self._max_missed = max_missed
        self._connect_timeout_s = connect_timeout_s
        self._max_unsent_bytes = max_unsent_bytes
        self._clock = clock or MonotonicClock()
        self._listener = _listen(bind_host, bind_port)
        self.port: int = self._listener.getsockname()[1]
        self.num_bad_connections = 0
        self.num_wrong_secrets = 0
        self._lock = threading.Lock()
        self._is_closed = False
        # The rest belongs to the link's thread.
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._connections: dict[str, PeerConnection] = {}
        self._unacknowledged: set[str] = set()
        self._all_ended = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="baton-peer-link", daemon=True)
        self._thread.start()

    def send(self, peer_key: str, message: HandoverMessage) -> None:
        """Queue a message. To an address without a connection it connects first; to a peer that
        is gone it is dropped (its PeerLost is on the way). Raises FrameError if the message is
        larger than a frame may be."""
        payload = self._codec.encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise FrameError(f"a message of {len(payload)} bytes is above {MAX_FRAME_BYTES}")
        with self._lock:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(self._send, peer_key, payload)

    def acknowledge_loss(self, address: str) -> None:
        """The PeerLost of this address has been read: what is sent from now on connects again."""
        with self._lock:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(self._unacknowledged.discard, address)

    def close(self) -> None:
        """Send what is queued (for half a second at most), close everything, end the thread.
        Idempotent; not to be called from `on_event`."""
        assert threading.current_thread() is not self._thread, "close from on_event"
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # What follows runs on the link's thread.

    def now_s(self) -> float:
        return self._clock.now_s()

    def on_made(self, connection: PeerConnection, remote: str) -> None:
        if connection.is_outbound:
            return
        connection.key = f"{remote}#{next(self._numbers)}"
        self._connections[connection.key] = connection
        strangers = [each for each in self._connections.values() if not each.is_greeted]
        if len(strangers) > _MAX_STRANGERS:
            connection.end(LostReason.PROTOCOL, f"over {_MAX_STRANGERS} connections without hello")

    def on_greeting(self, connection: PeerConnection, hello: EngineHello) -> None:
        self._report(PeerConnected(connection.key, hello))

    def on_frame(self, connection: PeerConnection, payload: bytes) -> None:
        self._report(PeerMessage(connection.key, self._codec.decode(payload)))

    def on_end(self, connection: PeerConnection, reason: LostReason, detail: str) -> None:
        self._connections.pop(connection.key, None)
        if not self._connections:
            self._all_ended.set()
        if reason is LostReason.PROTOCOL:
            self._count_bad(f"{connection.key}: {detail}")
        elif reason is LostReason.SECRET:
            self._count_wrong_secret(f"{connection.key}: {detail}")
        # A stranger who never said hello is nobody's peer.
        if connection.is_greeted or connection.is_outbound:
            if connection.is_outbound:
                self._unacknowledged.add(connection.key)
            self._report(PeerLost(connection.key, reason, detail))

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.closing(self._listener):
            self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        server = await self._loop.create_server(
            lambda: self._new_connection(""), sock=self._listener
        )
        beats = self._loop.create_task(self._beat())
        await self._stop.wait()
        server.close()
        tasks = [beats, *self._attempts]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._finish_connections()

    async def _finish_connections(self) -> None:
        for connection in list(self._connections.values()):
            connection.finish()
        if self._connections:
            self._all_ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), _FLUSH_S)
        for connection in list(self._connections.values()):
            connection.end(LostReason.CLOSED, "closed by this side")
        # Transports close their sockets in a callback of the loop's next turn.
        await asyncio.sleep(0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_interval_s)
            now_s = self.now_s()
            for connection in list(self._connections.values()):
                connection.beat(now_s)

    def _send(self, key: str, payload: bytes) -> None:
        connection = self._connections.get(key)
        if connection is None:
            is_inbound = "#" in key
            if is_inbound or key in self._unacknowledged:
                return
            connection = self._connections[key] = self._new_connection(key)
            attempt = self._loop.create_task(self._connect(connection))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._attempts.discard)
        connection.send(payload)

    async def _connect(self, connection: PeerConnection) -> None:
        host, _, port = connection.key.rpartition(":")
        try:
            if not host or not port.isdigit():
                raise ValueError(f"address {connection.key!r} is not host:port")
            async with asyncio.timeout(self._connect_timeout_s):
                await self._loop.create_connection(lambda: connection, host.strip("[]"), int(port))
        except TimeoutError:
            detail = f"no connection within {self._connect_timeout_s:g} s"
            connection.end(LostReason.UNREACHABLE, detail)
        except (OSError, ValueError, OverflowError) as error:
            connection.end(LostReason.UNREACHABLE, str(error))

    def _new_connection(self, key: str) -> PeerConnection:
        """Inbound ones (no key yet) get theirs when they are made."""
        now_s = self.now_s()
        return PeerConnection(
            self,
            key,
            self._hello,
            self._secret,
            HeartbeatMonitor(self._heartbeat_interval_s, self._max_missed, now_s),
            is_outbound=bool(key),
            max_unsent_bytes=self._max_unsent_bytes,
            greet_by_s=now_s + self._connect_timeout_s,
        )

    def _count_bad(self, what: str) -> None:
        self.num_bad_connections += 1
        level = logging.WARNING if self.num_bad_connections == 1 else logging.DEBUG
        _log.log(level, "closed a control connection that broke the protocol: %s", what)

    def _count_wrong_secret(self, what: str) -> None:
        self.num_wrong_secrets += 1
        level = logging.WARNING if self.num_wrong_secrets == 1 else logging.DEBUG
        _log.log(level, "closed a control connection: %s", what)

    def _report(self, event: PeerEvent) -> None:
        if self._is_closed:
            return
        try:
            self._on_event(event)
        except Exception:
            # The listener's bug must not end everybody's heartbeats.
            _log.exception("the listener of the peer link raised")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"cannot listen for peers' engines on {host}:{port}: {error}; choose another "
            "address or port"
        ) from error
