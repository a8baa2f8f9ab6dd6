"""Does a peer still take bytes? Liveness means progress: a peer whose heartbeats come while none of
its writes moves is stuck. Pure: the caller says which writes are pending and what time it is.

Progress belongs to the peer, not to a write: those of one peer go one after the other, and the
last in a long queue moves nothing for good reason.
Elsewhere: what counts as progress (transfer/protocol.py, Ticket), what is done (prefill.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.transfer.protocol import Ticket, TicketState


@dataclass
class _Watched:
    quiet_s: float = 0.0
    pending: list[tuple[Ticket, int]] = field(default_factory=list)
    """Each with its progress when it was looked at last."""

    def has_moved(self) -> bool:
        return any(
            ticket.state is TicketState.DONE or ticket.progress != before
            for ticket, before in self.pending
        )


class StallWatch:
    """Looks at pending writes, peer by peer. Of the time between two looks at most a quarter of the
    limit counts: an engine that was stopped itself must look again before it blames others."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._peers: dict[str, _Watched] = {}
        self._looked_s = 0.0

    def look(self, pending: Mapping[str, Sequence[Ticket]], now_s: float) -> None:
        passed_s = min(now_s - self._looked_s, self._limit_s / 4)
        self._looked_s = now_s
        peers: dict[str, _Watched] = {}
        for key, tickets in pending.items():
            watched = self._peers.get(key)
            if watched is None or watched.has_moved():
                watched = _Watched()
            else:
                watched.quiet_s += passed_s
            watched.pending = [(ticket, ticket.progress) for ticket in tickets]
            peers[key] = watched
        self._peers = peers

    def stuck(self) -> list[tuple[str, float]]:
        """Peers over the limit, each with the seconds since its last progress."""
        return [
            (key, watched.quiet_s)
            for key, watched in self._peers.items()
            if watched.quiet_s >= self._limit_s
        ]
