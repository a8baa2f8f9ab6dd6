"""What a writer and an owner say to each other over TCP.

    greeting   writer: magic, version, token, writer id, region bytes
               owner:  magic, version, status
    write      writer: BEGIN (window name), WRITE..., then END or CANCEL
               owner:  exactly one of DONE, REFUSED (reason), CANCELLED per BEGIN

A WRITE carries a table of (destination offset, length) and then the bytes of all its ranges in
one run, at most MAX_PAYLOAD_BYTES: many small blocks cost one frame, and a cancel waits for one
frame at most.

Invariant: `parse_*` accept nothing whose size or kind is out of bounds, so that a stranger can
make this side neither allocate nor wait for more than a frame.
Elsewhere: sockets (tcp_peer.py, tcp_receiver.py).
"""

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from baton.transfer.protocol import Copy

VERSION = 2
MAX_PAYLOAD_BYTES = 4 << 20
MAX_RANGES = 256
MAX_TEXT_BYTES = 512

_GREETING_MAGIC = b"BATNTCP1"
_FRAME_MAGIC = b"BTKV"
GREETING = struct.Struct("!8sH16s16sQ")
WELCOME = struct.Struct("!8sHH")
HEADER = struct.Struct("!4sBBHQQ")
RANGE = struct.Struct("!QQ")


class FrameError(ValueError):
    """The other side does not speak this protocol."""


class Status(enum.IntEnum):
    """The owner's answer to a greeting."""

    WELCOME = 0
    WRONG_TOKEN = 1
    WRONG_SIZE = 2
    WRONG_VERSION = 3


class Kind(enum.IntEnum):
    BEGIN = 1
    WRITE = 2
    END = 3
    CANCEL = 4
    DONE = 5
    REFUSED = 6
    CANCELLED = 7


FROM_WRITER = frozenset({Kind.BEGIN, Kind.WRITE, Kind.END, Kind.CANCEL})
FROM_OWNER = frozenset({Kind.DONE, Kind.REFUSED, Kind.CANCELLED})


class Header(NamedTuple):
    """`num_entries`: bytes of text after BEGIN and REFUSED, ranges after WRITE. `num_bytes`: the
    payload of a WRITE."""

    kind: Kind
    num_entries: int
    ticket_id: int
    num_bytes: int

    @property
    def num_table_bytes(self) -> int:
        """What follows the header, before the payload."""
        return self.num_entries * (RANGE.size if self.kind is Kind.WRITE else 1)


class Greeting(NamedTuple):
    version: int
    token: bytes
    writer_id: bytes
    region_bytes: int


def pack_greeting(token: bytes, writer_id: bytes, region_bytes: int) -> bytes:
    return GREETING.pack(_GREETING_MAGIC, VERSION, token, writer_id, region_bytes)


def parse_greeting(frame: bytes | memoryview) -> Greeting:
    magic, *fields = GREETING.unpack(frame)
    if magic != _GREETING_MAGIC:
        raise FrameError("it did not greet as a KV writer")
    return Greeting(*fields)


def pack_welcome(status: Status) -> bytes:
    return WELCOME.pack(_GREETING_MAGIC, VERSION, status)


def parse_welcome(frame: bytes) -> Status:
    magic, version, status = WELCOME.unpack(frame)
    if magic != _GREETING_MAGIC:
        raise FrameError("it did not answer as a KV region's owner")
    try:
        return Status(status)
    except ValueError:
        raise FrameError(f"it answered with unknown status {status}, version {version}") from None


def pack_frame(kind: Kind, ticket_id: int, text: str = "") -> bytes:
    """Any frame but WRITE. Text that is too long (reasons may be) is cut."""
    encoded = text.encode()[:MAX_TEXT_BYTES]
    return HEADER.pack(_FRAME_MAGIC, VERSION, kind, len(encoded), ticket_id, 0) + encoded


def pack_write(ticket_id: int, ranges: Sequence[Copy]) -> bytes:
    """Header and table of a WRITE; the ranges' bytes follow it."""
    num_bytes = sum(copy.num_bytes for copy in ranges)
    parts = [HEADER.pack(_FRAME_MAGIC, VERSION, Kind.WRITE, len(ranges), ticket_id, num_bytes)]
    parts.extend(RANGE.pack(copy.dst_offset, copy.num_bytes) for copy in ranges)
    return b"".join(parts)


def parse_header(frame: bytes | memoryview, allowed: frozenset[Kind]) -> Header:
    magic, version, kind, count, ticket_id, num_bytes = HEADER.unpack(frame)
    if magic != _FRAME_MAGIC or version != VERSION:
        raise FrameError(f"a frame starts with {magic!r}, version {version}")
    if kind not in allowed:
        raise FrameError(f"a frame has unexpected kind {kind}")
    is_write = kind == Kind.WRITE
    if count > (MAX_RANGES if is_write else MAX_TEXT_BYTES):
        raise FrameError(f"a frame of kind {kind} counts {count} entries")
    if num_bytes > (MAX_PAYLOAD_BYTES if is_write else 0):
        raise FrameError(f"a frame of kind {kind} has {num_bytes} bytes")
    return Header(Kind(kind), count, ticket_id, num_bytes)


def parse_ranges(table: bytes | memoryview, num_bytes: int) -> list[tuple[int, int]]:
    """(start, end) pairs of a WRITE whose lengths sum to `num_bytes`."""
    ranges = [(start, start + length) for start, length in RANGE.iter_unpack(table)]
    total = sum(end - start for start, end in ranges)
    if total != num_bytes or any(start == end for start, end in ranges):
        raise FrameError(f"a frame of {num_bytes} bytes has ranges of {total} bytes")
    return ranges


def parse_text(encoded: bytes | memoryview) -> str:
    # Text may have been cut inside a character.
    return bytes(encoded).decode(errors="replace")


def split_frames(copies: Sequence[Copy]) -> Iterator[list[Copy]]:
    """The same bytes in the same order, in groups that fit one WRITE each."""
    group: list[Copy] = []
    room = MAX_PAYLOAD_BYTES
    for copy in copies:
        done = 0
        while done < copy.num_bytes:
            length = min(room, copy.num_bytes - done)
            group.append(Copy(copy.src_offset + done, copy.dst_offset + done, length))
            done += length
            room -= length
            if room == 0 or len(group) == MAX_RANGES:
                yield group
                group, room = [], MAX_PAYLOAD_BYTES
    if group:
        yield group
