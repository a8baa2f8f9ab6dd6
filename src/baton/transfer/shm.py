"""Shared memory between processes of one host: the writer maps the owner's segment.

One copy from block to block, no staging and no kernel in between. No fence: a writer that has
mapped the segment cannot be stopped by its owner, and nobody checks windows. The owner waits for
the writer's word, or for its absence from `live_writers`.

Elsewhere: the owner's side (shm_owner.py), the copies (shm_peer.py), the segment
(kvcache/storage.py).
"""

import array
import fcntl
import os
import secrets
import socket
from collections.abc import Sequence

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.config import TransferConfig
from baton.transfer.host import host_id
from baton.transfer.io_loop import READABLE, IoLoop
from baton.transfer.open_peers import OpenPeers
from baton.transfer.protocol import CompletionCallback, TransportStats
from baton.transfer.shm_owner import HELLO, MAGIC, WELCOME, SegmentServer, require_same_user
from baton.transfer.shm_peer import CopyThreads, MappedRegion, PinnedBuffer, ShmPeer
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable


class ShmTransport:
    """`KvTransport` over `segment`, which must outlive it.

    `prefault_bytes`: so much of a peer's segment, from its start, is made present in idle moments,
    because the first write to a page that nobody has touched runs at 0.4 instead of 8 GB/s. It
    commits that memory and costs about 0.5 s of a core per GB, so it is bounded.
    """

    name = "shm"
    can_fence = False
    can_recall = True
    same_host_only = True

    def __init__(
        self,
        segment: SharedSegment,
        *,
        config: TransferConfig | None = None,
        prefault_bytes: int = 256 << 20,
    ):
        config = config or TransferConfig()
        self._segment = segment
        self._prefault_bytes = prefault_bytes
        self._source = PinnedBuffer(segment.map)
        self._windows = WindowTable(segment.num_bytes)
        self._account = WriteAccount()
        self._peers: OpenPeers[ShmPeer] = OpenPeers()
        self._writer_id = secrets.token_hex(16)
        self._threads = CopyThreads(config.num_threads)
        self._num_queues = config.num_queues
        self._loop = IoLoop("baton-shm-io")
        self._server = SegmentServer(self._loop, segment, self._account)
        self._descriptor = RegionDescriptor(
            backend=self.name,
            host_id=host_id(),
            address=f"{self._server.name}/{self._server.token.hex()}",
            num_bytes=segment.num_bytes,
        )

    @property
    def descriptor(self) -> RegionDescriptor:
        return self._descriptor

    @property
    def writer_id(self) -> str:
        return self._writer_id

    def live_writers(self) -> frozenset[str]:
        return self._server.live_writers()

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> ShmPeer:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(f"\0{remote.place}")
            region = self._map_region(connection, remote)
            return self._start_peer(connection, remote, region)
        except (OSError, ValueError) as error:
            connection.close()
            raise TransferError(
                f"cannot map the shared KV region: {error}", stage="connect", peer=remote.place
            ) from error

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Checks the arguments only: see `can_fence`."""
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
        self._threads.stop()
        self._loop.run(self._server.close)
        self._loop.stop()
        self._source.release()

    def _map_region(self, connection: socket.socket, remote: RegionDescriptor) -> MappedRegion:
        require_same_user(connection)
        token = bytes.fromhex(remote.address.partition("/")[2])
        connection.sendall(HELLO.pack(MAGIC, token, bytes.fromhex(self._writer_id)))
        reply, fds = _receive_welcome(connection)
        try:
            _check_segment(reply, fds, remote)
            return MappedRegion(fds[0], remote.num_bytes, self._prefault_bytes)
        finally:
            for fd in fds:
                os.close(fd)

    def _start_peer(
        self, connection: socket.socket, remote: RegionDescriptor, region: MappedRegion
    ) -> ShmPeer:
        watch = _OwnerWatch(self._loop, connection)
        peer = ShmPeer(
            f"shm region {remote.place}",
            region,
            self._source.address,
            self._segment.num_bytes,
            self._threads,
            self._num_queues,
            self._account,
            let_go=lambda: self._let_go(peer, watch),
        )
        watch.peer = peer
        try:
            self._peers.add(peer)
        except ValueError:
            region.unmap()
            raise
        self._loop.submit(watch.start)
        peer.start()
        return peer

    def _let_go(self, peer: ShmPeer, watch: "_OwnerWatch") -> None:
        self._peers.forget(peer)
        self._loop.run(watch.close)


class _OwnerWatch:
    """The writer's end of a connection: notices that the owner has gone."""

    def __init__(self, loop: IoLoop, connection: socket.socket):
        self._loop = loop
        self._connection = connection
        self._is_open = True
        self._is_registered = False
        self.peer: ShmPeer | None = None

    def start(self) -> None:
        if self._is_open:
            self._connection.setblocking(False)
            self._loop.register(self._connection.fileno(), READABLE, self)
            self._is_registered = True

    def on_ready(self, mask: int) -> None:
        # Nothing is ever sent after the greeting: whatever makes it readable is the end.
        self._lose("the owner has closed its region or died")

    def on_bug(self, error: Exception) -> None:
        self._lose(f"internal error: {error!r}")

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._unregister()
            self._connection.close()

    def _lose(self, loss: str) -> None:
        self._unregister()
        if self.peer is not None:
            self.peer.fail(loss)

    def _unregister(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.unregister(self._connection.fileno())


def _receive_welcome(connection: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    reply, ancillary, _, _ = connection.recvmsg(
        WELCOME.size, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content)
    return reply, fds.tolist()


def _check_segment(reply: bytes, fds: list[int], remote: RegionDescriptor) -> None:
    """Raises ValueError unless it is the region that the descriptor tells of, safe to map."""
    if len(reply) != WELCOME.size or len(fds) != 1:
        raise ValueError("the owner closed the connection or does not speak this protocol")
    magic, num_bytes = WELCOME.unpack(reply)
    if magic != MAGIC:
        raise ValueError("the owner speaks another version of the shm protocol")
    size = os.fstat(fds[0]).st_size
    if not num_bytes == size == remote.num_bytes:
        raise ValueError(f"the region has {size} bytes, but its descriptor says {remote.num_bytes}")
    # One that could shrink would turn our next write into SIGBUS.
    if not fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("the region is not sealed against shrinking")
