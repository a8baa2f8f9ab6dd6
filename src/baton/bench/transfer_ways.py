"""The ways to move blocks that are compared: each backend, a plain memcpy, a plain socket.

Each writes the same scattered blocks out of one source region and returns when they are there.
Elsewhere: the process at the other end (transfer_far.py), what is measured (bench_transfer.py).
"""

import ctypes
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import xxhash

from baton.bench.transfer_far import ARRIVED, COUNT, RANGE, SOCKET, WINDOW, FarSide
from baton.kvcache.storage import SharedSegment
from baton.transfer.protocol import Copy, TicketState
from baton.transfer.registry import open_transport

_CONNECT_S: Final = 10.0
_MIB: Final = 1 << 20
_TARGETS: Final = {
    "64KiB": 64 << 10,
    "block": 0,
    "1MiB": _MIB,
    "16MiB": 16 * _MIB,
    "128MiB": 128 * _MIB,
}


@dataclass(frozen=True)
class Payload:
    """One write; all but the smallest are whole blocks. A sample does it `num_repeats` times."""

    name: str
    copies: tuple[Copy, ...]
    num_repeats: int

    @property
    def num_bytes(self) -> int:
        return sum(copy.num_bytes for copy in self.copies)


def make_payloads(block_bytes: int, max_mib: int) -> list[Payload]:
    """64 KiB, one block, and as many blocks as make 1, 16 and 128 MiB, up to `max_mib`."""
    payloads = []
    for name, target_bytes in _TARGETS.items():
        if target_bytes > max_mib * _MIB:
            continue
        num_blocks = max(1, round(target_bytes / block_bytes))
        copies = _scattered(num_blocks, block_bytes)
        if name == "64KiB":
            copies = (Copy(0, 0, min(target_bytes, block_bytes)),)
        num_bytes = sum(copy.num_bytes for copy in copies)
        payloads.append(Payload(name, copies, max(1, min(100, 32 * _MIB // num_bytes))))
    return payloads


def region_bytes(payloads: Sequence[Payload]) -> int:
    """What holds every copy, at either end."""
    copies = [copy for payload in payloads for copy in payload.copies]
    ends = [max(copy.src_offset, copy.dst_offset) + copy.num_bytes for copy in copies]
    return -(-max(ends) // 4096) * 4096


def _scattered(num_blocks: int, block_bytes: int) -> tuple[Copy, ...]:
    """Sources in random order, targets in order with gaps: no two can be joined."""
    sources = random.Random(num_blocks).sample(range(2 * num_blocks), num_blocks)
    return tuple(
        Copy(source * block_bytes, 2 * index * block_bytes, block_bytes)
        for index, source in enumerate(sources)
    )


class Way(Protocol):
    def write(self, payload: Payload) -> None:
        """Returns when all bytes are there."""
        ...

    def cpu_s(self) -> float:
        """Processor time so far, of this process and of the one at the other end."""
        ...

    def checksum(self) -> str:
        """Of the whole target region."""
        ...

    def close(self) -> None: ...


class Memcpy:
    """From one region to another in this process."""

    def __init__(self, source: SharedSegment):
        self._target = SharedSegment(source.num_bytes)
        self._anchors = [ctypes.c_char.from_buffer(each.map) for each in (source, self._target)]
        self._addresses = [ctypes.addressof(anchor) for anchor in self._anchors]

    def write(self, payload: Payload) -> None:
        source, target = self._addresses
        for copy in payload.copies:
            ctypes.memmove(target + copy.dst_offset, source + copy.src_offset, copy.num_bytes)

    def cpu_s(self) -> float:
        return time.process_time()

    def checksum(self) -> str:
        return xxhash.xxh3_64_hexdigest(self._target.view())

    def close(self) -> None:
        self._anchors.clear()
        self._target.close()


class PlainSocket:
    """`sendall` of each block, `recv_into` its place, one byte back."""

    def __init__(self, source: SharedSegment):
        self._view = source.view()
        self._far = FarSide(SOCKET, source.num_bytes)
        self._connection = socket.create_connection(("127.0.0.1", int(self._far.address)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, payload: Payload) -> None:
        table = [RANGE.pack(copy.dst_offset, copy.num_bytes) for copy in payload.copies]
        self._connection.sendall(b"".join([COUNT.pack(len(table)), *table]))
        for copy in payload.copies:
            self._connection.sendall(self._view[copy.src_offset :][: copy.num_bytes])
        assert self._connection.recv(1) == ARRIVED

    def cpu_s(self) -> float:
        return time.process_time() + self._far.cpu_s()

    def checksum(self) -> str:
        return self._far.ask("checksum")

    def close(self) -> None:
        self._connection.close()
        self._far.close()
        self._view.release()


class Transport:
    """A backend, as the engines use it. Raises ConfigError or TransferError where it cannot run."""

    def __init__(self, backend: str, source: SharedSegment):
        self.far = FarSide(backend, source.num_bytes)
        self._transport = open_transport(backend, source)
        self._completed = threading.Event()
        self._transport.set_on_completion(self._completed.set)
        self._peer = self._transport.connect(self.far.descriptor, _CONNECT_S)

    def write(self, payload: Payload) -> None:
        self._completed.clear()
        ticket = self._peer.post_write(WINDOW, payload.copies)
        while ticket.state is TicketState.PENDING:
            self._completed.wait()
            self._completed.clear()
        assert ticket.state is TicketState.DONE, ticket.error

    def cpu_s(self) -> float:
        return time.process_time() + self.far.cpu_s()

    def checksum(self) -> str:
        return self.far.ask("checksum")

    def close(self) -> None:
        self._transport.close()
        self.far.close()
