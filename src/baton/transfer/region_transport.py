"""What every transport over a region of its own has alike: guests, windows, the account of writes.

Elsewhere: connecting and writing (shm.py, tcp.py, library_transport.py).
"""

import secrets
from collections.abc import Sequence

from baton.messages.regions import RegionDescriptor
from baton.transfer.guests import ANYONE, GuestList
from baton.transfer.protocol import CompletionCallback, TransportStats
from baton.transfer.ticket import WriteAccount
from baton.transfer.windows import WindowTable


class RegionTransport:
    """The part of `KvTransport` that asks nothing of a backend."""

    def __init__(self, guests: GuestList, windows: WindowTable, account: WriteAccount):
        self._guests = guests
        self._windows = windows
        self._account = account
        self._descriptor = guests.admit(ANYONE)
        self._writer_id = secrets.token_bytes(16)

    @property
    def descriptor(self) -> RegionDescriptor:
        return self._descriptor

    @property
    def writer_id(self) -> str:
        return self._writer_id.hex()

    def admit(self, guest: str) -> RegionDescriptor:
        return self._guests.admit(guest)

    def expel(self, guest: str) -> None:
        self._guests.expel(guest)

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Where there is no fence (`can_fence`), this checks the arguments only."""
        self._windows.open(window, ranges)

    def close_window(self, window: str) -> None:
        self._windows.close(window)

    def set_on_completion(self, callback: CompletionCallback) -> None:
        self._account.set_callback(callback)

    def stats(self) -> TransportStats:
        return self._account.stats()
