"""Who is told where decode's pool is: each prefill engine for as long as its connection lasts.

Connections to the pool are told apart by the control connection that they belong to: a writer that
comes after the loss of its own is refused, whoever else is at its address.

Elsewhere: keeping them out (transfer/guests.py), when a connection is lost (decode.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from baton.messages.regions import RegionDescriptor
from baton.transfer.protocol import KvTransport


@dataclass(frozen=True)
class PoolGuest:
    """`regions`: the pool, as this guest reaches it over each transport."""

    name: str
    regions: list[RegionDescriptor]


class PoolGuests:
    """At most one per address; a name is never used twice."""

    def __init__(self, transports: Sequence[KvTransport]):
        self._transports = transports
        self._by_address: dict[str, PoolGuest] = {}
        self._num_admitted = 0

    def at(self, address: str) -> PoolGuest:
        """Of the connection to this address that is there, or will be made."""
        guest = self._by_address.get(address)
        if guest is None:
            self._num_admitted += 1
            name = f"{address}#{self._num_admitted}"
            regions = [transport.admit(name) for transport in self._transports]
            guest = self._by_address[address] = PoolGuest(name, regions)
        return guest

    def expel(self, address: str) -> None:
        """The connection is lost: nobody comes to the pool in its name any more."""
        guest = self._by_address.pop(address, None)
        if guest is not None:
            for transport in self._transports:
                transport.expel(guest.name)
