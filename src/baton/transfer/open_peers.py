"""The peers that a transport has open, shared by every backend.

Invariants: a transport ends once, every peer it had open then is closed, and none is added later.
Elsewhere: what else a backend closes (shm.py, tcp.py, routed.py).
"""

import threading
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


PeerT = TypeVar("PeerT", bound=Closable)


class OpenPeers(Generic[PeerT]):
    """Thread-safe. Peers are closed without a lock held: as they end they ask to be forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: set[PeerT] = set()
        self._has_ended = False

    def add(self, peer: PeerT) -> None:
        """Raises ValueError once the transport has ended; the peer is then the caller's to end."""
        with self._lock:
            if self._has_ended:
                raise ValueError("this side's transport has been closed")
            self._peers.add(peer)

    def forget(self, peer: PeerT) -> None:
        """Idempotent."""
        with self._lock:
            self._peers.discard(peer)

    def snapshot(self) -> list[PeerT]:
        with self._lock:
            return list(self._peers)

    def end(self) -> list[PeerT] | None:
        """Close all and say which; None if that was done before."""
        with self._lock:
            if self._has_ended:
                return None
            self._has_ended = True
            peers = list(self._peers)
        for peer in peers:
            peer.close()
        return peers
