"""Decode's blocks of failed hand-overs: nobody's, until no write can arrive.

Invariant: blocks leave quarantine only when the prefill engine that holds the lease has said that
nothing is pending, or cannot write any more: the connection to it is lost, and each transport
either fences closed windows or has no writer left of the guest that it was, who is expelled.
Elsewhere: what ends a hand-over (decode.py), guests (pool_guests.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.disagg.stage import HandoverStage, HandoverTally
from baton.kvcache.block_pool import BlockPool
from baton.obs.logs import event_log
from baton.transfer.protocol import KvTransport

log = event_log("disagg")


@dataclass
class Lease:
    """What is left of a hand-over. `guest`: as what the peer may connect to the pool. `engine_id`:
    the life of the peer that holds the lease, None before its hello; another one at its address
    knows nothing of it."""

    transfer_id: str
    peer_address: str
    generation: int
    guest: str
    since_s: float
    engine_id: str | None
    is_overdue: bool = False
    is_peer_lost: bool = False

    @property
    def holder(self) -> str:
        return f"quarantine:{self.transfer_id}"

    def is_held_by(self, address: str, engine_id: str | None) -> bool:
        """Is this, at this address, who holds it? After a loss only the same life is."""
        is_same_life = engine_id is not None and engine_id == self.engine_id
        return self.peer_address == address and (is_same_life or not self.is_peer_lost)


class Quarantine:
    def __init__(
        self,
        pool: BlockPool,
        transports: Sequence[KvTransport],
        tally: HandoverTally,
        release_warning_s: float,
    ):
        self._pool = pool
        self._transports = transports
        self._tally = tally
        self._release_warning_s = release_warning_s
        self._leases: dict[str, Lease] = {}  # by transfer id

    @property
    def num_blocks(self) -> int:
        return sum(len(self._pool.held_by(lease.holder)) for lease in self._leases.values())

    def oldest_s(self, now_s: float) -> float:
        return max((now_s - lease.since_s for lease in self._leases.values()), default=0.0)

    def get(self, transfer_id: str) -> Lease | None:
        return self._leases.get(transfer_id)

    def take(self, lease: Lease, holder: str) -> None:
        """From now on these blocks are nobody's."""
        self._pool.rename(holder, lease.holder)
        self._leases[lease.transfer_id] = lease

    def release(self, transfer_id: str, now_s: float) -> None:
        """Nothing can arrive any more. Unknown transfers are ignored."""
        lease = self._leases.pop(transfer_id, None)
        if lease is not None:
            self._tally.left(HandoverStage.QUARANTINED, now_s - lease.since_s)
            self._pool.release(lease.holder)

    def lose_peer(self, address: str, engine_id: str | None) -> None:
        """The connection is lost, and its guest expelled."""
        for lease in self._leases.values():
            if lease.peer_address == address:
                lease.is_peer_lost = True
                lease.engine_id = lease.engine_id or engine_id

    def unconfirmed(self, address: str, engine_id: str) -> Iterator[Lease]:
        """Leases of a lost connection to this life of a peer, which is connected again."""
        for lease in self._leases.values():
            if lease.is_peer_lost and lease.is_held_by(address, engine_id):
                yield lease

    def tick(self, now_s: float) -> None:
        for lease in list(self._leases.values()):
            if self._cannot_be_written(lease):
                self.release(lease.transfer_id, now_s)
            elif now_s >= lease.since_s + self._release_warning_s and not lease.is_overdue:
                self._say_overdue(lease, now_s)

    def _cannot_be_written(self, lease: Lease) -> bool:
        if not lease.is_peer_lost:
            return False  # it will answer our cancel
        return all(
            transport.can_fence or not transport.live_writers(lease.guest)
            for transport in self._transports
        )

    def _say_overdue(self, lease: Lease, now_s: float) -> None:
        lease.is_overdue = True
        self._tally.overdue(HandoverStage.QUARANTINED)
        log.warning(
            "blocks stay in quarantine until the prefill worker answers or ends",
            stage=HandoverStage.QUARANTINED.value,
            peer=lease.peer_address,
            transfer_id=lease.transfer_id,
            seconds=round(now_s - lease.since_s, 1),
            limit="BATON_DISAGGREGATION_RELEASE_WARNING",
        )
