"""The contract of every KV transport: one-sided writes of byte ranges into a peer's region.

A writer (prefill) copies ranges of its own region into ranges of a peer's region. The peer takes
no part in the copy, but says before which ranges may be written: it opens a *window* per
transfer and closes it when the transfer is over.

Invariants, checked by `baton.testing.transport_conformance` on every backend:
- a write outside of either region fails the ticket and moves no byte;
- after a ticket is DONE all its bytes are in the peer's region;
- after a ticket has left PENDING, this side writes nothing more for it;
- if the backend `can_fence`, a write lands only in ranges of a window that is open (anything else
  fails the ticket), and after `close_window` returns no byte of that window changes, whatever the
  writer still does. Without a fence the owner must keep the blocks until the writer has said that
  its ticket left PENDING, or is gone from `live_writers` (late writes corrupt reused blocks).

Elsewhere: what the bytes mean (kvcache/layout.py), who may write when (disagg/).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.messages.regions import RegionDescriptor


@dataclass(frozen=True)
class Copy:
    """One contiguous range to write: byte offsets inside the source and destination regions."""

    src_offset: int
    dst_offset: int
    num_bytes: int


class TicketState(enum.Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class TransportStats:
    """Counters of one transport; they only grow.

    `num_writes`, `num_bytes` and `write_seconds` (from the first byte moved to the end) count
    tickets that became DONE; `num_failures` those that FAILED. `num_bad_connections` counts
    inbound connections that were closed because they did not speak this protocol, `num_strangers`
    those of them that spoke it but did not know the region's token.
    """

    num_writes: int
    num_bytes: int
    num_failures: int
    write_seconds: float
    num_bad_connections: int = 0
    num_strangers: int = 0


class Ticket(Protocol):
    """A posted write. `error` says why when FAILED. `progress` changes while the peer takes bytes,
    its own or those before it; what it counts is the backend's affair."""

    @property
    def state(self) -> TicketState: ...
    @property
    def error(self) -> str: ...
    @property
    def progress(self) -> int: ...


class Peer(Protocol):
    """A writer's connection to one remote region."""

    @property
    def is_alive(self) -> bool:
        """False once the peer's process is known to be dead or the connection is broken."""
        ...

    def post_write(self, window: str, copies: Sequence[Copy]) -> Ticket:
        """Start writing; returns at once. Writes of one window complete in posting order; those
        of different windows may overtake each other. Source bytes must stay unchanged until the
        ticket leaves PENDING."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Ask that a ticket stop; returns at once. It becomes CANCELLED, or DONE if it was too
        late. With a peer that hangs it may stay PENDING until `close`."""
        ...

    def close(self) -> None:
        """Cancel what is pending and let go. Idempotent. No ticket is PENDING afterwards (soon
        afterwards, if called from within the completion callback), but for one whose write had
        begun on a backend that cannot recall it: that one stays PENDING until its bytes have
        arrived or the owner is gone.

        Elsewhere a write that had begun may still arrive from buffers between the two hosts: only
        the owner can end it, by closing its window."""
        ...


class KvTransport(Protocol):
    """One backend, owning one local region for its lifetime. All methods are thread-safe."""

    name: str
    can_fence: bool
    can_recall: bool
    """Whether a closed peer stops a write that has begun; see `Peer.close`."""

    same_host_only: bool

    @property
    def descriptor(self) -> RegionDescriptor: ...

    @property
    def writer_id(self) -> str:
        """What this transport is called in the `live_writers` of the regions it connects to."""
        ...

    def live_writers(self) -> frozenset[str]:
        """Writers connected to the local region. A connected writer that has left this set has
        let go of the region or its process is dead: nothing more of it can arrive. (One that was
        never here may still connect: it knows the descriptor.)"""
        ...

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> Peer:
        """Raises TransferError (stage "connect") when the region cannot be reached."""
        ...

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Let a peer write into these [start, end) byte ranges of the local region.

        A name is used once: a late writer must never meet a second window of the same name.
        Raises ValueError if a range lies outside of the region or the name is open already."""
        ...

    def close_window(self, window: str) -> None:
        """End a window. Idempotent; see `can_fence`."""
        ...

    def set_on_completion(self, callback: "CompletionCallback") -> None:
        """`callback()` is called from any thread (also from within `post_write` and `close`)
        whenever some ticket left PENDING. It must be quick and take no lock that is held while
        calling the transport."""
        ...

    def stats(self) -> TransportStats: ...

    def close(self) -> None:
        """Close every peer and connection, and let go of the region; no ticket is PENDING
        afterwards. Idempotent."""
        ...


class CompletionCallback(Protocol):
    def __call__(self) -> None: ...


def find_bad_copy(copies: Sequence[Copy], source_bytes: int, target_bytes: int) -> str:
    """Why a write cannot be (the first copy that leaves a region), or "" if it can."""
    for copy in copies:
        if copy.num_bytes < 0:
            return f"num_bytes {copy.num_bytes} of a copy is negative"
        if copy.src_offset < 0 or copy.src_offset + copy.num_bytes > source_bytes:
            return (
                f"source range [{copy.src_offset}, {copy.src_offset + copy.num_bytes}) "
                f"is outside of the local region of {source_bytes} bytes"
            )
        if copy.dst_offset < 0 or copy.dst_offset + copy.num_bytes > target_bytes:
            return (
                f"destination range [{copy.dst_offset}, {copy.dst_offset + copy.num_bytes}) "
                f"is outside of the peer's region of {target_bytes} bytes"
            )
    return ""


def merge_adjacent(copies: Sequence[Copy]) -> list[Copy]:
    """Join copies that continue each other on both sides: few large copies beat many small ones."""
    merged: list[Copy] = []
    for copy in copies:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.src_offset + last.num_bytes == copy.src_offset
            and last.dst_offset + last.num_bytes == copy.dst_offset
        ):
            merged[-1] = Copy(last.src_offset, last.dst_offset, last.num_bytes + copy.num_bytes)
        else:
            merged.append(copy)
    return merged
