"""Shared memory between processes of one host: the writer maps the owner's segment.

One copy from block to block, no staging and no kernel in between. No fence: a writer that has
mapped the segment cannot be stopped by its owner, and nobody checks windows. The owner waits for
the writer's word, or for its absence from `live_writers` once its guest is expelled.

Elsewhere: the owner's side (shm_owner.py), the copies (shm_peer.py), the segment
(kvcache/storage.py).
"""

import array
import fcntl
import os
import socket

from baton.core.errors import TransferError
from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.config import TransferConfig
from baton.transfer.io_loop import IoLoop
from baton.transfer.open_peers import OpenPeers
from baton.transfer.owner_watch import OwnerWatch
from baton.transfer.pinned_buffer import PinnedBuffer
from baton.transfer.region_transport import RegionTransport
from baton.transfer.shm_owner import HELLO, MAGIC, WELCOME, SegmentServer, require_same_user
from baton.transfer.shm_peer import CopyThreads, MappedRegion, ShmPeer
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable


class ShmTransport(RegionTransport):
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
        self._peers: OpenPeers[ShmPeer] = OpenPeers()
        self._threads = CopyThreads(config.num_threads)
        self._num_queues = config.num_queues
        self._loop = IoLoop("baton-shm-io")
        account = WriteAccount()
        self._server = SegmentServer(self._loop, segment, account)
        super().__init__(self._server.guests, WindowTable(segment.num_bytes), account)

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        return self._server.live_writers(guest)

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
        connection.sendall(HELLO.pack(MAGIC, token, self._writer_id))
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
        watch = OwnerWatch(self._loop, connection)
        peer = ShmPeer(
            f"shm region {remote.place}",
            region,
            self._source,
            self._threads,
            self._num_queues,
            self._account,
            let_go=lambda: self._let_go(peer, watch),
        )
        try:
            self._peers.add(peer)
        except ValueError:
            region.unmap()
            raise
        self._loop.submit(lambda: watch.start(peer.fail))
        peer.start()
        return peer

    def _let_go(self, peer: ShmPeer, watch: OwnerWatch) -> None:
        self._peers.forget(peer)
        self._loop.run(watch.close)


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
