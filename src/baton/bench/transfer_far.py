"""The process at the other end of a transfer benchmark: owns a region and is written to.

    python -m baton.bench.transfer_far WAY NUM_BYTES

prints where it can be reached as one line, then answers each line of standard input with one line:

    cpu                     seconds of processor time so far
    checksum                XXH3 of the whole region
    link HOST:PORT          "ok"; opens a control link to there
    delivered               the monotonic time in ns at which the next KvDelivered could be known

and ends with its standard input. WAY is a backend of the registry, or "socket" for a plain one that
takes (offset, length) pairs and their bytes, and answers with a byte when all are there.
"""

import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Final

import msgspec
import xxhash

from baton.core.errors import ConfigError
from baton.ipc.peer_link import PeerEvent, PeerLink, PeerMessage
from baton.kvcache.storage import SharedSegment
from baton.messages.codec import Codec
from baton.messages.handover import EngineHello, HandoverMessage, KvDelivered, KvReserved
from baton.messages.regions import RegionDescriptor
from baton.transfer.registry import open_transport

SOCKET: Final = "socket"
WINDOW: Final = "bench"
COUNT: Final = struct.Struct("!I")
RANGE: Final = struct.Struct("!QQ")
ARRIVED: Final = b"k"

OPENING: Final = KvReserved(
    transfer_id=WINDOW,
    room=0,
    sample_index=0,
    num_prompt_tokens=0,
    prompt_digest=b"",
    num_cached_blocks=0,
    block_ids=[],
    regions=[],
)
"""What decode's engine says first, which makes the connection."""


class FarSide:
    """Starts the process and talks to it. Raises ConfigError with its reason if it cannot start."""

    def __init__(self, way: str, num_bytes: int):
        command = [sys.executable, "-m", __name__, way, str(num_bytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._read_line()
        if self.address.startswith("error: "):
            self.close()
            raise ConfigError(self.address.removeprefix("error: "))

    @property
    def descriptor(self) -> RegionDescriptor:
        return msgspec.json.decode(self.address, type=RegionDescriptor)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read_line()

    def cpu_s(self) -> float:
        return float(self.ask("cpu"))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().rstrip("\n")
        return line or "error: the other process has died"


def new_link(on_event: "queue.SimpleQueue[tuple[int, PeerEvent]]") -> PeerLink:
    """An engine's control link; its events come with the monotonic time in ns."""
    return PeerLink(
        Codec(HandoverMessage),
        EngineHello(engine_id="bench"),
        lambda event: on_event.put((time.monotonic_ns(), event)),
        "127.0.0.1",
    )


def next_message(events: "queue.SimpleQueue[tuple[int, PeerEvent]]") -> tuple[int, PeerMessage]:
    """Waits for one; other events pass by. Raises queue.Empty if there is none for 10 s."""
    while True:
        at_ns, event = events.get(timeout=10.0)
        if isinstance(event, PeerMessage):
            return at_ns, event


def main() -> None:
    way, num_bytes = sys.argv[1:]
    segment = SharedSegment(int(num_bytes))
    view = segment.view()
    if way == SOCKET:
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_receive, args=(listener, view), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
    else:
        try:
            transport = open_transport(way, segment)
        except ConfigError as error:
            print(f"error: {error}", flush=True)
            return
        transport.open_window(WINDOW, [(0, segment.num_bytes)])
        print(msgspec.json.encode(transport.descriptor).decode(), flush=True)
    _answer_all(view)


def _answer_all(view: memoryview) -> None:
    events: queue.SimpleQueue[tuple[int, PeerEvent]] = queue.SimpleQueue()
    link: PeerLink | None = None
    for line in sys.stdin:
        match line.split():
            case ["cpu"]:
                answer = str(time.process_time())
            case ["checksum"]:
                answer = xxhash.xxh3_64_hexdigest(view)
            case ["link", address]:
                link = new_link(events)
                link.send(address, OPENING)
                answer = "ok"
            case ["delivered"]:
                at_ns, event = next_message(events)
                assert isinstance(event.message, KvDelivered)
                answer = str(at_ns)
            case _:
                raise ValueError(f"unknown command {line!r}")
        print(answer, flush=True)
    if link is not None:
        link.close()


def _receive(listener: socket.socket, view: memoryview) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while head := connection.recv(COUNT.size, socket.MSG_WAITALL):
            (count,) = COUNT.unpack(head)
            table = connection.recv(count * RANGE.size, socket.MSG_WAITALL)
            for offset, length in RANGE.iter_unpack(table):
                end = offset + length
                while offset < end:
                    received = connection.recv_into(view[offset:end])
                    if received == 0:
                        return
                    offset += received
            connection.sendall(ARRIVED)


if __name__ == "__main__":
    main()
