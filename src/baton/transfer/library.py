"""What Baton asks of a transfer library: reach a peer, post a batch, tell when it has arrived.

Invariant: no call blocks on a peer that hangs, but for the first `post` to it, which may shake
hands; so the calls for one peer come from that peer's own thread.
Elsewhere: queues, deadlines and tickets (library_peer.py), the libraries (mooncake.py, nixl.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from baton.messages.regions import LibraryInvitation
from baton.transfer.protocol import Copy
from baton.transfer.shm_peer import split_pieces

PROOF_BYTES = 64
MAX_BATCH_ENTRIES = 1024
"""Mooncake fails, with part of it written, above about 2,050 entries at its defaults."""

MAX_BATCH_BYTES = 8 << 20
"""A cancel waits for one batch: a tenth of a second at 100 MB/s."""


class LibraryError(Exception):
    """The library cannot do what was asked. Part of a write may have arrived, or may yet arrive."""


class LibraryWrite(Protocol):
    """A batch under way."""

    def poll(self) -> bool:
        """True once every byte is in the peer's memory. Raises LibraryError when it never will."""
        ...

    def abandon(self) -> None:
        """Ask no more about it. Its bytes may still arrive."""
        ...


class LibraryTarget(Protocol):
    """One peer's region, through the library."""

    def post(self, batch: Sequence[Copy]) -> LibraryWrite:
        """Start to write at most MAX_BATCH_ENTRIES ranges. Raises LibraryError."""
        ...

    def prove(self) -> LibraryWrite:
        """Start to write a few bytes that belong to nobody. Raises LibraryError."""
        ...

    def close(self, *, is_owner_lost: bool) -> None: ...


class TransferLibrary(Protocol):
    """A library with the local region registered once, for reading and for being written to."""

    @property
    def invitation(self) -> LibraryInvitation: ...

    def accept(self, invitation: LibraryInvitation) -> LibraryTarget:
        """Raises LibraryError."""
        ...

    def close(self) -> None:
        """Stop every write under way on this side and let go of the memory. Every peer's thread
        has ended or is stuck in a first `post`."""
        ...


def split_batches(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """The same bytes in the same order, in groups within both limits."""
    batch: list[Copy] = []
    num_bytes = 0
    for piece in split_pieces(list(copies), MAX_BATCH_BYTES):
        if batch and (
            len(batch) == MAX_BATCH_ENTRIES or num_bytes + piece.num_bytes > MAX_BATCH_BYTES
        ):
            yield batch
            batch, num_bytes = [], 0
        batch.append(piece)
        num_bytes += piece.num_bytes
    if batch:
        yield batch
