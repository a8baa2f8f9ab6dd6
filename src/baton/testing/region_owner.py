"""A process that owns a region and does what it is told: the far side of transport tests.

    python -m baton.testing.region_owner BACKEND NUM_BYTES PORT

prints its descriptor as one line of JSON, then answers each line of standard input with one line:

    open NAME START END     "ok"
    close NAME              "ok"
    digest START END        SHA-256 of those bytes
    writers                 ids of the live writers, joined by spaces

and ends with its standard input. `RemoteOwner` starts one and talks to it.
"""

import hashlib
import subprocess
import sys
from types import TracebackType

import msgspec

from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.protocol import KvTransport
from baton.transfer.registry import open_transport
from baton.transfer.tcp import TcpTransport


def open_region(
    backend: str,
    segment: SharedSegment,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stall_timeout_s: float = 10.0,
) -> KvTransport:
    """As `open_transport`, with what only some backends have: a port and a stall timeout."""
    if backend == TcpTransport.name:
        return TcpTransport(segment, host=host, port=port, stall_timeout_s=stall_timeout_s)
    return open_transport(backend, segment, host=host)


def port_of(descriptor: RegionDescriptor) -> int:
    """The port that a new process can take over, 0 if the backend's addresses are always new."""
    if descriptor.backend != TcpTransport.name:
        return 0
    return int(descriptor.address.partition("/")[0].rpartition(":")[2])


class RemoteOwner:
    """Another process with a region; a context manager that ends it."""

    def __init__(self, backend: str, num_bytes: int, port: int = 0):
        command = [sys.executable, "-m", __name__, backend, str(num_bytes), str(port)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.descriptor = msgspec.json.decode(self._read_line(), type=RegionDescriptor)

    def __enter__(self) -> "RemoteOwner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._read_line()

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


def answer(transport: KvTransport, view: memoryview, command: str) -> str:
    match command.split():
        case ["open", name, start, end]:
            transport.open_window(name, [(int(start), int(end))])
            return "ok"
        case ["close", name]:
            transport.close_window(name)
            return "ok"
        case ["digest", start, end]:
            return hashlib.sha256(view[int(start) : int(end)]).hexdigest()
        case ["writers"]:
            return " ".join(sorted(transport.live_writers()))
    raise ValueError(f"unknown command {command!r}")


def main() -> None:
    backend, num_bytes, port = sys.argv[1:]
    segment = SharedSegment(int(num_bytes))
    transport = open_region(backend, segment, port=int(port))
    print(msgspec.json.encode(transport.descriptor).decode(), flush=True)
    for line in sys.stdin:
        print(answer(transport, segment.view(), line), flush=True)


if __name__ == "__main__":
    main()
