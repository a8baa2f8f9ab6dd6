"""KV over plain TCP: any two hosts, no special hardware, and a fence.

The owner checks each range against its open windows and receives straight into the region; the
writer sends straight from its own. A peer is several connections, and all connections of a
transport are dealt out to its threads in turn, at either end.

Invariant: only who knows a guest's token gets past the greeting, and only into windows.
Elsewhere: the two sides (tcp_receiver.py; tcp_peer.py, tcp_lane.py), what they say (tcp_frames.py),
socket options (tcp_sockets.py).
"""

import functools
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.config import TransferConfig
from baton.transfer.guests import GuestList, writers_among
from baton.transfer.host import host_id
from baton.transfer.io_loop import Acceptor, IoLoop
from baton.transfer.open_peers import OpenPeers
from baton.transfer.pinned_buffer import PinnedBuffer
from baton.transfer.region_transport import RegionTransport
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
    keep_in_cache,
    listen,
    parse_address,
    receive_exactly,
    tune,
)
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable

_GREETING_TIMEOUT_S = 5.0


class TcpTransport(RegionTransport):
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
        config: TransferConfig | None = None,
    ):
        told_host = host_for_peers(host, advertised_host)
        config = config or TransferConfig()
        self._stall_timeout_s = stall_timeout_s
        self._num_queues = config.num_queues
        self._memory = PinnedBuffer(segment.map)
        self._lock = threading.Lock()
        self._peers: OpenPeers[TcpPeer] = OpenPeers()
        self._receivers: set[TcpReceiver] = set()
        listener = listen(host, port)
        guests = GuestList(
            RegionDescriptor(
                backend=self.name,
                host_id=host_id(),
                address=f"{told_host}:{listener.getsockname()[1]}",
                num_bytes=segment.num_bytes,
            )
        )
        super().__init__(guests, WindowTable(segment.num_bytes), WriteAccount())
        self._region = Region(self._memory, self._windows, self._guests)
        self._loops = [IoLoop(f"baton-tcp-io-{index}") for index in range(config.num_threads)]
        self._next_loop: Iterator[IoLoop] = itertools.cycle(self._loops)
        self._acceptor = Acceptor(self._loops[0], listener, self._accept)

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        with self._lock:
            return writers_among(self._receivers, guest)

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> TcpPeer:
        place = remote.place
        give_up_s = time.monotonic() + timeout_s
        connections: list[socket.socket] = []
        try:
            address = parse_address(remote.address)
            for _ in range(self._num_queues):
                left_s = max(0.001, give_up_s - time.monotonic())
                connections.append(self._open_lane(address, remote.num_bytes, left_s))
            return self._start_peer(connections, place, remote.num_bytes)
        except (OSError, ValueError) as error:
            for connection in connections:
                connection.close()
            raise TransferError(
                f"cannot reach the KV region: {error}", stage="connect", peer=place
            ) from error

    def close(self) -> None:
        if self._peers.end() is None:
            return
        self._loops[0].run(self._acceptor.close)
        for loop in self._loops:
            loop.run(functools.partial(self._close_receivers, loop))
            loop.stop()
        self._memory.release()

    def _open_lane(
        self, address: tuple[str, int, bytes], region_bytes: int, timeout_s: float
    ) -> socket.socket:
        host, port, token = address
        connection = socket.create_connection((host, port), timeout_s)
        try:
            tune(connection, self._stall_timeout_s)
            keep_in_cache(connection)
            connection.sendall(pack_greeting(token, self._writer_id, region_bytes))
            status = parse_welcome(receive_exactly(connection, WELCOME.size))
            if status is not Status.WELCOME:
                raise FrameError(
                    f"its owner turned us away with {status.name}; it has probably restarted, so "
                    f"ask it for its new descriptor"
                )
            connection.setblocking(False)
        except (OSError, ValueError):
            connection.close()
            raise
        return connection

    def _start_peer(
        self, connections: Sequence[socket.socket], place: str, region_bytes: int
    ) -> TcpPeer:
        peer = TcpPeer(
            f"tcp region {place}",
            [(next(self._next_loop), connection) for connection in connections],
            self._memory,
            region_bytes,
            self._account,
            self._peers.forget,
        )
        self._peers.add(peer)
        peer.start()
        return peer

    def _accept(self, connection: socket.socket) -> None:
        if len(self._receivers) >= MAX_CONNECTIONS:
            connection.close()
            self._account.record_bad_connection(self.name, f"over {MAX_CONNECTIONS} connections")
            return
        tune(connection, self._stall_timeout_s)
        with self._lock:
            loop = next(self._next_loop)
            receiver = TcpReceiver(loop, connection, self._region, self._forget_receiver)
            self._receivers.add(receiver)
        loop.submit(functools.partial(receiver.start, _GREETING_TIMEOUT_S))

    def _forget_receiver(self, receiver: TcpReceiver, bad: str) -> None:
        with self._lock:
            self._receivers.discard(receiver)
        if bad:  # told last: who reads of it finds the writer gone
            self._account.record_bad_connection(self.name, bad, is_stranger=receiver.is_stranger)

    def _close_receivers(self, loop: IoLoop) -> None:
        with self._lock:
            receivers = [receiver for receiver in self._receivers if receiver.loop is loop]
        for receiver in receivers:
            receiver.close()
