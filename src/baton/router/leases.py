"""Which worker has announced itself, through which process, and until when that holds. Pure.

Invariant: a worker has one lease at most, and only the process that holds it can end it.
Elsewhere: what a lease means for the pool (announcements.py).
"""

from dataclasses import dataclass


@dataclass
class Lease:
    """`instance` names the process at `url`."""

    url: str
    worker_id: str
    instance: str
    expires_s: float


class Leases:
    def __init__(self) -> None:
        self._by_url: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._by_url)

    def find(self, url: str) -> Lease | None:
        return self._by_url.get(url)

    def renew(self, lease: Lease) -> bool:
        """Returns whether another process had announced itself at this address before."""
        before = self._by_url.get(lease.url)
        self._by_url[lease.url] = lease
        return before is not None and before.instance != lease.instance

    def end(self, url: str, instance: str) -> Lease | None:
        """The lease, if this process holds it: one that was replaced says nothing any more."""
        lease = self._by_url.get(url)
        if lease is None or lease.instance != instance:
            return None
        return self._by_url.pop(url)

    def take_expired(self, now_s: float) -> list[Lease]:
        expired = [lease for lease in self._by_url.values() if lease.expires_s <= now_s]
        for lease in expired:
            del self._by_url[lease.url]
        return expired

    def next_expiry_s(self) -> float | None:
        return min((lease.expires_s for lease in self._by_url.values()), default=None)
