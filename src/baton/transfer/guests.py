"""Who may connect to a region: each guest has a descriptor of its own, with a token of its own.

So a writer that its owner has given up can be kept out, though it knows where the region is: the
token that it was told is worth nothing any more, and the next one is told to who is there again.

Invariant: once `expel` has returned nobody comes in with that guest's token, and who came in with
it before has been noted.
Elsewhere: who is a guest (disagg/decode.py), those who came in (shm_owner.py, tcp_receiver.py,
companion.py).
"""

import hmac
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from baton.messages.regions import RegionDescriptor

ANYONE = ""
"""The guest of a transport's own descriptor, who is never expelled."""


class Visitor(Protocol):
    """Who is connected; `writer_id` is empty until it has greeted."""

    writer_id: str
    guest: str


def writers_among(visitors: Iterable[Visitor], guest: str | None) -> frozenset[str]:
    """The writers that came in with `guest`'s token; None for all."""
    return frozenset(
        each.writer_id for each in visitors if each.writer_id and guest in (None, each.guest)
    )


class GuestList:
    """`region`: the descriptor, but for the token. Thread-safe."""

    def __init__(self, region: RegionDescriptor):
        self._region = region
        self._lock = threading.Lock()
        self._tokens: dict[str, bytes] = {}

    def admit(self, guest: str) -> RegionDescriptor:
        """Raises ValueError if it is one already."""
        with self._lock:
            if guest in self._tokens:
                raise ValueError(f"guest {guest} is admitted already")
            token = self._tokens[guest] = secrets.token_bytes(16)
        address = f"{self._region.address}/{token.hex()}"
        return msgspec.structs.replace(self._region, address=address)

    def expel(self, guest: str) -> None:
        with self._lock:
            self._tokens.pop(guest, None)

    def let_in(self, token: bytes, note: Callable[[str], None]) -> bool:
        """Is this a guest's token? Then `note(guest)` is called first; it must be quick."""
        with self._lock:
            guest = self._guest_of(token)
            if guest is None:
                return False
            note(guest)
            return True

    def _guest_of(self, token: bytes) -> str | None:
        found = None
        for guest, own in self._tokens.items():  # all of them: time tells nothing
            if hmac.compare_digest(token, own):
                found = guest
        return found
