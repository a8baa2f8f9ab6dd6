"""One control connection between two engines: greeting, frames, heartbeats, and one end.

On the wire: frames of ipc/framing.py. The first two in each direction prove the cluster's secret
(peer_auth.py); all others are sealed. Of those the first is the engine's hello, an empty one is a
heartbeat, every other one is a message.

Invariants: nothing of this engine goes to a peer that has not proven the secret, and nothing of
such a peer is decoded; `on_end` is called exactly once, whatever goes wrong first, and nothing
after it.
Elsewhere: who connects to whom (peer_link.py), the proofs (peer_auth.py).
"""

import asyncio
import enum
from typing import Protocol, cast

import msgspec

from baton.ipc.framing import FrameError, FrameReader, frame
from baton.ipc.heartbeat import HeartbeatMonitor
from baton.ipc.peer_auth import MAX_HANDSHAKE_BYTES, REFUSAL, FrameSeal, Handshake, WrongSecret
from baton.messages.codec import Codec
from baton.messages.handover import EngineHello

MAX_FRAME_BYTES = 16 << 20
_MAX_HELLO_BYTES = 64 << 10
_HEARTBEAT = b""
_HELLO_CODEC: Codec[EngineHello] = Codec(EngineHello)


class LostReason(enum.StrEnum):
    """Why a peer was lost. None of them proves that its process is dead: it may have closed the
    connection because it believed *us* dead, or hang and come back. Who needs a proof asks the
    transport (`live_writers`)."""

    CLOSED = "connection closed by the peer"
    HEARTBEAT = "heartbeats missed"
    UNREACHABLE = "unreachable"
    PROTOCOL = "protocol broken"
    SECRET = "wrong cluster secret"
    OVERFLOW = "peer does not read"


class ConnectionOwner(Protocol):
    def on_made(self, connection: "PeerConnection", remote: str) -> None:
        """The bytes flow; `remote` is the other end's address."""
        ...

    def on_greeting(self, connection: "PeerConnection", hello: EngineHello) -> None: ...

    def on_frame(self, connection: "PeerConnection", payload: bytes) -> None:
        """May raise msgspec.DecodeError for a payload that is no message."""
        ...

    def on_end(self, connection: "PeerConnection", reason: LostReason, detail: str) -> None: ...

    def now_s(self) -> float: ...


class PeerConnection(asyncio.Protocol):
    """All methods run on the link's event loop. Messages may be sent before it is connected."""

    def __init__(
        self,
        owner: ConnectionOwner,
        key: str,
        hello: EngineHello,
        secret: bytes,
        monitor: HeartbeatMonitor,
        *,
        is_outbound: bool,
        max_unsent_bytes: int,
        greet_by_s: float,
    ):
        self.key = key
        self.is_outbound = is_outbound
        self.is_greeted = False
        self._owner = owner
        self._hello = hello
        self._monitor = monitor
        self._max_unsent_bytes = max_unsent_bytes
        self._greet_by_s = greet_by_s
        self._handshake = Handshake(secret, is_connecting=is_outbound)
        self._has_challenge = False
        self._outgoing: FrameSeal | None = None  # both once the peer has proven the secret
        self._incoming: FrameSeal | None = None
        self._reader = FrameReader(MAX_HANDSHAKE_BYTES)
        self._num_hello_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._backlog: list[bytes] = []
        self._is_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._is_ended:
            host, port, *_ = transport.get_extra_info("peername") or ("unknown", 0)
            self._owner.on_made(self, f"{host}:{port}")
        if self._is_ended:
            self._transport.abort()
            return
        self._transport.write(frame(self._handshake.challenge()))

    def data_received(self, data: bytes) -> None:
        self._monitor.heard(self._owner.now_s())
        try:
            for payload in self._reader.feed(data):
                self._on_payload(payload)
                if self._is_ended:
                    return
            if not self.is_greeted:
                self._bound_hello(len(data))
        except WrongSecret as error:
            self.end(LostReason.SECRET, f"wrong cluster secret: {error}")
        except (FrameError, msgspec.DecodeError) as error:
            self.end(LostReason.PROTOCOL, str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self.end(LostReason.CLOSED, str(error or "end of stream"))

    def send(self, payload: bytes) -> None:
        """Queue one message; a peer that does not read for too long is dropped."""
        if self._outgoing is None:
            self._backlog.append(payload)
        else:
            self._write_sealed(payload)
        num_unsent = self._num_unsent_bytes()
        if num_unsent > self._max_unsent_bytes:
            self.end(
                LostReason.OVERFLOW,
                f"{num_unsent} bytes unsent, above the limit of {self._max_unsent_bytes}",
            )

    def beat(self, now_s: float) -> None:
        """Once per heartbeat interval: say that we are here, and see whether the peer is."""
        if not self.is_greeted and now_s >= self._greet_by_s:
            self.end(LostReason.UNREACHABLE, "connected, but it sent no hello in time")
        elif self._outgoing is None:
            return  # connecting and proving have their own timeouts
        elif self._monitor.check_lost(now_s):
            silent_s = self._monitor.silent_s(now_s)
            self.end(LostReason.HEARTBEAT, f"nothing heard for {silent_s:.1f} s")
        else:
            self._write_sealed(_HEARTBEAT)

    def end(self, reason: LostReason, detail: str) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        if self._transport is not None:
            self._transport.abort()
        self._owner.on_end(self, reason, detail)

    def finish(self) -> None:
        """Close after sending what is queued; ends by `connection_lost`."""
        if self._transport is None:
            self.end(LostReason.CLOSED, "closed by this side")
        else:
            self._transport.close()

    def _on_payload(self, payload: bytes) -> None:
        if self._incoming is None:
            self._on_handshake(payload)
            return
        payload = self._incoming.open(payload)
        if not self.is_greeted:
            hello = _HELLO_CODEC.decode(payload)
            self.is_greeted = True
            self._owner.on_greeting(self, hello)
        elif payload:
            self._owner.on_frame(self, payload)

    def _on_handshake(self, payload: bytes) -> None:
        assert self._transport is not None
        if not self._has_challenge:
            self._handshake.read_challenge(payload)
            self._has_challenge = True
            if self.is_outbound:
                self._transport.write(frame(self._handshake.proof()))
            return
        try:
            self._handshake.check_proof(payload)
        except WrongSecret:
            if not self.is_outbound:
                self._transport.write(frame(REFUSAL))
            raise
        if not self.is_outbound:
            self._transport.write(frame(self._handshake.proof()))
        self._outgoing, self._incoming = self._handshake.seals()
        self._reader.max_frame_bytes = MAX_FRAME_BYTES + FrameSeal.OVERHEAD_BYTES
        for own in (_HELLO_CODEC.encode(self._hello), *self._backlog):
            self._write_sealed(own)
        self._backlog.clear()

    def _write_sealed(self, payload: bytes) -> None:
        assert self._transport is not None
        assert self._outgoing is not None
        self._transport.write(frame(self._outgoing.seal(payload)))

    def _bound_hello(self, num_bytes: int) -> None:
        self._num_hello_bytes += num_bytes
        if self._num_hello_bytes > _MAX_HELLO_BYTES:
            raise FrameError(f"no hello within the first {_MAX_HELLO_BYTES} bytes")

    def _num_unsent_bytes(self) -> int:
        if self._transport is None or self._backlog:
            return sum(map(len, self._backlog))
        return self._transport.get_write_buffer_size()
