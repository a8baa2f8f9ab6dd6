"""The connection of ours beside a transfer library's own: an introduction, and a sign of life.

    writer: magic, version, backend, token, writer id, region bytes
    owner:  magic, version, status, length of an invitation, the invitation
    writer: BYE when it leaves and all that it wrote is known to have arrived

Nothing else is ever said, so an end of file is the news: of the owner's end to the writer at once.
A writer that ends without BYE (it died, or gave up a write) stays among the live writers for
`drain_s` more: what its kernel had taken from it still comes in, and the library stores it.

Invariant: a writer is listed before it is invited, hence before it can write.
Elsewhere: what is in an invitation (messages/regions.py), the writes (library_peer.py).
"""

import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from baton.messages.regions import LibraryInvitation
from baton.transfer.guests import GuestList, writers_among
from baton.transfer.io_loop import READABLE, Acceptor, IoLoop
from baton.transfer.tcp_frames import FrameError, Status
from baton.transfer.tcp_sockets import MAX_CONNECTIONS, receive_exactly, tune
from baton.transfer.ticket import WriteAccount

DRAIN_S = 5.0
"""Over a network whose kernels have to send again; what a local process left is there at once."""

STALL_TIMEOUT_S = 10.0
"""A peer whose host vanished is given up after so long."""

BYE = b"B"
VERSION = 1
_MAGIC = b"BATNLIB1"
HELLO = struct.Struct("!8sH16s16s16sQ")
WELCOME = struct.Struct("!8sHHI")
_HELLO_TIMEOUT_S = 5.0
_MAX_INVITATION_BYTES = 1 << 20


def pack_hello(backend: str, token: bytes, writer_id: bytes, region_bytes: int) -> bytes:
    return HELLO.pack(_MAGIC, VERSION, backend.encode(), token, writer_id, region_bytes)


def greet(
    connection: socket.socket, backend: str, token: bytes, writer_id: bytes, region_bytes: int
) -> LibraryInvitation:
    """Introduce this writer over a connected, blocking socket. Raises OSError or FrameError."""
    connection.sendall(pack_hello(backend, token, writer_id, region_bytes))
    magic, version, status, length = WELCOME.unpack(receive_exactly(connection, WELCOME.size))
    if magic != _MAGIC or version != VERSION or length > _MAX_INVITATION_BYTES:
        raise FrameError(f"it answered with {magic!r}, version {version}, {length} bytes")
    if status != Status.WELCOME:
        raise FrameError(
            f"status {status}; the owner has probably restarted, so ask it for its new descriptor"
        )
    try:
        return msgspec.msgpack.decode(receive_exactly(connection, length), type=LibraryInvitation)
    except msgspec.DecodeError as error:
        raise FrameError(f"its invitation is damaged: {error}") from error


class CompanionServer:
    """The owner's side for one region. Calls come from any thread, sockets stay on the loop's."""

    def __init__(
        self,
        loop: IoLoop,
        listener: socket.socket,
        backend: str,
        guests: GuestList,
        region_bytes: int,
        invitation: LibraryInvitation,
        account: WriteAccount,
        drain_s: float = DRAIN_S,
    ):
        self._loop = loop
        self._backend = backend
        self._drain_s = drain_s
        self._guests = guests
        self._region_bytes = region_bytes
        self._invitation = msgspec.msgpack.encode(invitation)
        self._account = account
        self._lock = threading.Lock()
        self._connections: set[_WriterConnection] = set()
        self._acceptor = Acceptor(loop, listener, self._accept)

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        with self._lock:
            return writers_among(self._connections, guest)

    def close(self) -> None:
        """On the loop's thread."""
        self._acceptor.close()
        for connection in list(self._connections):
            connection.close()

    def answer_to(self, hello: bytes, enter: Callable[[str, str], None]) -> Status:
        """`enter(guest, writer_id)` is called for who is let in. Raises FrameError if it speaks
        something else."""
        magic, version, backend, token, writer_id, region_bytes = HELLO.unpack(hello)
        if magic != _MAGIC or backend.rstrip(b"\0") != self._backend.encode():
            raise FrameError(f"it did not greet as a {self._backend} writer")
        if version != VERSION:
            return Status.WRONG_VERSION
        fits = region_bytes == self._region_bytes
        name = writer_id.hex() if fits else ""
        if not self._guests.let_in(token, lambda guest: enter(guest, name)):
            return Status.WRONG_TOKEN
        return Status.WELCOME if fits else Status.WRONG_SIZE

    def pack_welcome(self, status: Status) -> bytes:
        invitation = self._invitation if status is Status.WELCOME else b""
        return WELCOME.pack(_MAGIC, VERSION, status, len(invitation)) + invitation

    def forget(self, connection: "_WriterConnection", bad: str, is_clean: bool) -> None:
        """Its socket is closed."""
        if bad:
            self._account.record_bad_connection(
                self._backend, bad, is_stranger=connection.is_stranger
            )
        if is_clean:
            self._strike(connection)
        else:
            self._loop.call_later(self._drain_s, lambda: self._strike(connection))

    def _strike(self, connection: "_WriterConnection") -> None:
        with self._lock:
            self._connections.discard(connection)

    def _accept(self, socket_: socket.socket) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            socket_.close()
            self._account.record_bad_connection(
                self._backend, f"over {MAX_CONNECTIONS} connections"
            )
            return
        tune(socket_, STALL_TIMEOUT_S)
        connection = _WriterConnection(self, self._loop, socket_)
        with self._lock:
            self._connections.add(connection)
        self._loop.register(socket_.fileno(), READABLE, connection)
        self._loop.call_later(_HELLO_TIMEOUT_S, connection.expire)


class _WriterConnection:
    """One writer's connection; all on the loop's thread."""

    def __init__(self, server: CompanionServer, loop: IoLoop, socket_: socket.socket):
        self._server = server
        self._loop = loop
        self._socket = socket_
        self._received = b""
        self._is_open = True
        self._said_bye = False
        self.is_stranger = False
        self.writer_id = ""
        self.guest = ""

    def on_ready(self, mask: int) -> None:
        try:
            chunk = self._socket.recv(HELLO.size - len(self._received) or 1)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
        elif self.writer_id:
            self._said_bye = chunk == BYE
        else:
            self._received += chunk
            if len(self._received) == HELLO.size:
                self._greet()

    def on_bug(self, error: Exception) -> None:
        self.close()

    def expire(self) -> None:
        if not self.writer_id:
            self.close(bad=f"no greeting within {_HELLO_TIMEOUT_S:g} s")

    def close(self, bad: str = "") -> None:
        if self._is_open:
            self._is_open = False
            self._loop.unregister(self._socket.fileno())
            self._socket.close()
            self._server.forget(self, bad, self._said_bye or not self.writer_id)

    def _greet(self) -> None:
        try:
            status = self._server.answer_to(self._received, self._enter)
            # The first bytes on a new socket fit its buffer, and an invitation has a few hundred.
            self._socket.send(self._server.pack_welcome(status))
        except FrameError as error:
            self.close(bad=str(error))
        except OSError:
            self.close()
        else:
            if status is not Status.WELCOME:
                self.is_stranger = status is Status.WRONG_TOKEN
                self.close(bad=f"greeting refused: {status.name}")

    def _enter(self, guest: str, writer_id: str) -> None:
        self.guest, self.writer_id = guest, writer_id
