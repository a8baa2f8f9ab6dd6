"""KV over plain TCP: any two hosts, no special hardware, and a fence.

The owner checks each range against its open windows and receives straight into the region; the
writer sends straight from its own. One thread serves all connections of a transport.

Invariant: only who knows the descriptor's token gets past the greeting, and only into windows.
Elsewhere: the two sides (tcp_receiver.py, tcp_peer.py), what they say (tcp_frames.py), socket
options (tcp_sockets.py).
"""

import secrets
import socket
import threading
from collections.abc import Sequence

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.host import host_id
from baton.transfer.io_loop import Acceptor, IoLoop
from baton.transfer.open_peers import OpenPeers
from baton.transfer.protocol import CompletionCallback, TransportStats
from baton.transfer.tcp_frames import (
    WELCOME,
    FrameError,
    Status,
    pack_greeting,
    parse_welcome,
)
from baton.transfer.tcp_peer import TcpPeer
from baton.transfer.tcp_receiver import Region, TcpReceiver
from baton.transfer.tcp_sockets import (
    MAX_CONNECTIONS,
    host_for_peers,
    listen,
    parse_address,
    receive_exactly,
    tune,
)
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable

_GREETING_TIMEOUT_S = 5.0


class TcpTransport:
    """`KvTransport` over `segment`, which must outlive it.

    Listens on `host`:`port` (0: chosen by the system) and tells peers to connect to
    `advertised_host`, which is needed when `host` is a wildcard. A peer that takes no byte for
    `stall_timeout_s`, or whose host vanishes, fails its tickets.
    """

    name = "tcp"
    can_fence = True
    can_recall = True
    same_host_only = False

    def __init__(
        self,
        segment: SharedSegment,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str = "",
        stall_timeout_s: float = 10.0,
    ):
        told_host = host_for_peers(host, advertised_host)
        self._stall_timeout_s = stall_timeout_s
        self._view = segment.view()
        self._windows = WindowTable(segment.num_bytes)
        self._account = WriteAccount()
        self._lock = threading.Lock()
        self._peers: OpenPeers[TcpPeer] = OpenPeers()
        self._receivers: set[TcpReceiver] = set()
        self._writer_id = secrets.token_bytes(16)
        token = secrets.token_bytes(16)
        self._region = Region(self._view, self._windows, token)
        listener = listen(host, port)
        bound_port = listener.getsockname()[1]
        self._descriptor = RegionDescriptor(
            backend=self.name,
            host_id=host_id(),
            address=f"{told_host}:{bound_port}/{token.hex()}",
            num_bytes=segment.num_bytes,
        )
        self._loop = IoLoop("baton-tcp-io")
        self._acceptor = Acceptor(self._loop, listener, self._accept)

    @property
    def descriptor(self) -> RegionDescriptor:
        return self._descriptor

    @property
    def writer_id(self) -> str:
        return self._writer_id.hex()

    def live_writers(self) -> frozenset[str]:
        with self._lock:
            return frozenset(each.writer_id for each in self._receivers if each.writer_id)

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> TcpPeer:
        place = remote.address.partition("/")[0]
        try:
            host, port, token = parse_address(remote.address)
            connection = socket.create_connection((host, port), timeout_s)
        except (OSError, ValueError) as error:
            raise TransferError(
                f"cannot reach the KV region: {error}", stage="connect", peer=place
            ) from error
        try:
            tune(connection, self._stall_timeout_s)
            self._greet(connection, token, remote.num_bytes)
            connection.setblocking(False)
            return self._start_peer(connection, place, remote.num_bytes)
        except (OSError, ValueError) as error:
            connection.close()
            raise TransferError(
                f"the owner of the KV region turned us away: {error}", stage="connect", peer=place
            ) from error

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        self._windows.open(window, ranges)

    def close_window(self, window: str) -> None:
        self._windows.close(window)

    def set_on_completion(self, callback: CompletionCallback) -> None:
        self._account.set_callback(callback)

    def stats(self) -> TransportStats:
        return self._account.stats()

    def close(self) -> None:
        if self._peers.end() is None:
            return
        self._loop.run(self._close_sockets)
        self._loop.stop()
        self._view.release()

    def _greet(self, connection: socket.socket, token: bytes, region_bytes: int) -> None:
        connection.sendall(pack_greeting(token, self._writer_id, region_bytes))
        status = parse_welcome(receive_exactly(connection, WELCOME.size))
        if status is not Status.WELCOME:
            raise FrameError(
                f"{status.name}; the owner has probably restarted, so ask it for its new descriptor"
            )

    def _start_peer(self, connection: socket.socket, place: str, region_bytes: int) -> TcpPeer:
        peer = TcpPeer(
            f"tcp region {place}",
            self._loop,
            connection,
            self._view,
            region_bytes,
            self._account,
            self._peers.forget,
        )
        self._peers.add(peer)
        self._loop.submit(peer.start)
        return peer

    def _accept(self, connection: socket.socket) -> None:
        if len(self._receivers) >= MAX_CONNECTIONS:
            connection.close()
            self._account.record_bad_connection(self.name, f"over {MAX_CONNECTIONS} connections")
            return
        tune(connection, self._stall_timeout_s)
        receiver = TcpReceiver(self._loop, connection, self._region, self._forget_receiver)
        with self._lock:
            self._receivers.add(receiver)
        self._loop.call_later(_GREETING_TIMEOUT_S, receiver.expire)

    def _forget_receiver(self, receiver: TcpReceiver, bad: str) -> None:
        with self._lock:
            self._receivers.discard(receiver)
        if bad:  # told last: who reads of it finds the writer gone
            self._account.record_bad_connection(self.name, bad)

    def _close_sockets(self) -> None:
        self._acceptor.close()
        for receiver in list(self._receivers):
            receiver.close()
