"""The owner's side of shared memory: hands the segment to writers and knows who holds it.

It listens on an abstract Unix socket (no file is left behind, and network namespaces keep hosts
apart), serves processes of its own user that know a guest's token (anybody can read
abstract names in /proc/net/unix), and keeps each connection: its end is the end of
the writer, seen in microseconds.

    writer: magic, token, writer id (16 bytes)  ->  owner: magic, region bytes (u64), descriptor

Invariant: whoever holds the descriptor is in `live_writers` until it has let go or is dead. A
writer unmaps before it closes, and when a process dies the kernel takes its memory away before it
closes its sockets.
Elsewhere: the writer's side (shm.py, shm_peer.py).
"""

import os
import secrets
import socket
import struct
import threading

from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.guests import GuestList, writers_among
from baton.transfer.host import host_id
from baton.transfer.io_loop import READABLE, Acceptor, IoLoop
from baton.transfer.ticket import WriteAccount

MAGIC = b"BATNSHM2"
HELLO = struct.Struct("!8s16s16s")
WELCOME = struct.Struct("!8sQ")
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
_HELLO_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 1024


class SegmentServer:
    """Serves one segment. Calls come from any thread, sockets stay on the loop's."""

    def __init__(self, loop: IoLoop, segment: SharedSegment, account: WriteAccount):
        self._loop = loop
        self._segment = segment
        self._account = account
        self._lock = threading.Lock()
        self._connections: set[_WriterConnection] = set()
        self.name = f"baton-kv-{secrets.token_hex(8)}"
        self.guests = GuestList(
            RegionDescriptor(
                backend="shm",
                host_id=host_id(),
                address=self.name,
                num_bytes=segment.num_bytes,
            )
        )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0{self.name}")
        listener.listen(128)
        self._acceptor = Acceptor(loop, listener, self._accept)

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        with self._lock:
            return writers_among(self._connections, guest)

    def close(self) -> None:
        """On the loop's thread."""
        self._acceptor.close()
        for connection in list(self._connections):
            connection.close()

    def hand_out(self, connection: socket.socket) -> None:
        """Raises OSError or ValueError if this writer cannot have it."""
        require_same_user(connection)
        welcome = WELCOME.pack(MAGIC, self._segment.num_bytes)
        socket.send_fds(connection, [welcome], [self._segment.fd])

    def forget(
        self, connection: "_WriterConnection", socket_: socket.socket, bad: str, is_stranger: bool
    ) -> None:
        if bad:
            self._account.record_bad_connection("shm", bad, is_stranger=is_stranger)
        self._loop.unregister(socket_.fileno())
        socket_.close()
        with self._lock:
            self._connections.discard(connection)

    def _accept(self, socket_: socket.socket) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._account.record_bad_connection("shm", f"over {_MAX_CONNECTIONS} connections")
            socket_.close()
            return
        connection = _WriterConnection(self, socket_)
        with self._lock:
            self._connections.add(connection)
        self._loop.register(socket_.fileno(), READABLE, connection)
        self._loop.call_later(_HELLO_TIMEOUT_S, connection.expire)


class _WriterConnection:
    """One writer's connection; all on the loop's thread."""

    def __init__(self, server: SegmentServer, socket_: socket.socket):
        self._server = server
        self._socket = socket_
        self._received = b""
        self._is_open = True
        self.writer_id = ""
        self.guest = ""

    def on_ready(self, mask: int) -> None:
        try:
            chunk = self._socket.recv(HELLO.size - len(self._received) or HELLO.size)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
        elif not self.writer_id:
            # Later bytes are dropped: closing would strike a writer from the list that still
            # holds the descriptor.
            self._received += chunk
            if len(self._received) >= HELLO.size:
                self._greet()

    def on_bug(self, error: Exception) -> None:
        self.close()

    def expire(self) -> None:
        if not self.writer_id:
            self.close(bad=f"no greeting within {_HELLO_TIMEOUT_S:g} s")

    def close(self, bad: str = "", *, is_stranger: bool = False) -> None:
        if self._is_open:
            self._is_open = False
            self._server.forget(self, self._socket, bad, is_stranger)

    def _greet(self) -> None:
        magic, token, writer_id = HELLO.unpack(self._received)
        if magic != MAGIC:
            self.close(bad="it does not speak this version of the shm protocol")
            return

        def enter(guest: str) -> None:
            # Named first: from the moment the descriptor is out, the writer may write.
            self.guest, self.writer_id = guest, writer_id.hex()

        if not self._server.guests.let_in(token, enter):
            self.close(bad="it knows no token that is valid", is_stranger=True)
            return
        try:
            self._server.hand_out(self._socket)
        except (OSError, ValueError) as error:
            self.close(bad=str(error))


def require_same_user(connection: socket.socket) -> None:
    """Raises ValueError if the process at the other end runs as somebody else."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
    )
    _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    if uid != os.getuid():
        raise ValueError(f"the other side runs as user {uid}, this one as {os.getuid()}")
