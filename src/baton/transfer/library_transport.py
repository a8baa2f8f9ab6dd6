"""`KvTransport` over a transfer library and a companion connection for each peer.

No fence: the library, or the network card, stores what arrives without asking this process. The
owner waits for the writer's word or for its absence from `live_writers`.

Elsewhere: the libraries (mooncake.py, nixl.py), writing (library_peer.py), the connection
(companion.py).
"""

import socket

from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.transfer.companion import BYE, DRAIN_S, STALL_TIMEOUT_S, CompanionServer, greet
from baton.transfer.guests import GuestList
from baton.transfer.host import host_id
from baton.transfer.io_loop import IoLoop
from baton.transfer.library import LibraryError, TransferLibrary
from baton.transfer.library_peer import LibraryPeer
from baton.transfer.open_peers import OpenPeers
from baton.transfer.owner_watch import OwnerWatch
from baton.transfer.region_transport import RegionTransport
from baton.transfer.tcp_sockets import listen, parse_address, tune
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable


class LibraryTransport(RegionTransport):
    """Listens for companions on `host`, at a port that the system chooses, and tells peers to come
    to `told_host`. Owns `library`, in which a region of `num_bytes` is registered. `drain_s`: how
    long a writer that went without a word counts as alive."""

    can_fence = False
    can_recall = False
    same_host_only = False

    def __init__(
        self,
        name: str,
        library: TransferLibrary,
        num_bytes: int,
        host: str,
        told_host: str,
        num_queues: int,
        stall_timeout_s: float,
        drain_s: float = DRAIN_S,
    ):
        self.name = name
        self._library = library
        self._num_bytes = num_bytes
        self._num_queues = num_queues
        self._stall_timeout_s = stall_timeout_s
        self._peers: OpenPeers[LibraryPeer] = OpenPeers()
        listener = listen(host, 0)
        guests = GuestList(
            RegionDescriptor(
                backend=name,
                host_id=host_id(),
                address=f"{told_host}:{listener.getsockname()[1]}",
                num_bytes=num_bytes,
            )
        )
        super().__init__(guests, WindowTable(num_bytes), WriteAccount())
        self._loop = IoLoop(f"baton-{name}-io")
        self._server = CompanionServer(
            self._loop,
            listener,
            name,
            self._guests,
            num_bytes,
            library.invitation,
            self._account,
            drain_s,
        )

    def live_writers(self, guest: str | None = None) -> frozenset[str]:
        return self._server.live_writers(guest)

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> LibraryPeer:
        place = remote.place
        try:
            host, port, token = parse_address(remote.address)
            connection = socket.create_connection((host, port), timeout_s)
        except (OSError, ValueError) as error:
            raise TransferError(
                f"cannot reach the KV region: {error}", stage="connect", peer=place
            ) from error
        try:
            tune(connection, STALL_TIMEOUT_S)
            invitation = greet(connection, self.name, token, self._writer_id, remote.num_bytes)
        except (OSError, ValueError) as error:
            connection.close()
            raise TransferError(
                f"the owner of the KV region turned us away: {error}", stage="connect", peer=place
            ) from error
        watch = OwnerWatch(self._loop, connection)
        peer = LibraryPeer(
            f"{self.name} region {place}",
            lambda: self._library.accept(invitation),
            self._num_bytes,
            remote.num_bytes,
            self._num_queues,
            self._account,
            self._stall_timeout_s,
            let_go=lambda peer, is_clean: self._let_go(peer, watch, is_clean),
        )
        try:
            self._start(peer, watch, timeout_s)
        except (LibraryError, ValueError) as error:
            raise TransferError(
                f"{self.name} does not reach the KV region: {error}", stage="connect", peer=place
            ) from error
        return peer

    def close(self) -> None:
        peers = self._peers.end()
        if peers is None:
            return
        for peer in peers:
            peer.abandon()
        self._loop.run(self._server.close)
        self._library.close()
        self._loop.stop()

    def _start(self, peer: LibraryPeer, watch: OwnerWatch, timeout_s: float) -> None:
        try:
            self._peers.add(peer)
        except ValueError:
            watch.close(BYE)
            raise
        self._loop.submit(lambda: watch.start(peer.fail))
        peer.start(timeout_s)

    def _let_go(self, peer: LibraryPeer, watch: OwnerWatch, is_clean: bool) -> None:
        self._peers.forget(peer)
        # Not waited for: the loop's thread may be the one that waits for this peer to end.
        self._loop.submit(lambda: watch.close(BYE if is_clean else b""))
