"""A process that owns a region and does what it is told: the far side of transport tests.

    python -m baton.testing.region_owner BACKEND NUM_BYTES HOST PORT STALL_TIMEOUT_S

prints its descriptor as one line of JSON, then answers each line of standard input with one line:

    open NAME START END     "ok"
    close NAME              "ok"
    digest START END        SHA-256 of those bytes
    writers                 ids of the live writers, joined by spaces
    fence                   "yes" if closing a window is one, else "no"
    fd                      the number of its region's descriptor

and ends with its standard input. `RemoteOwner` starts one and talks to it.
"""

import contextlib
import hashlib
import mmap
import os
import sys
from collections.abc import Iterator, Sequence

import msgspec

from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.testing.region_process import RegionProcess, region_of_arguments
from baton.transfer.protocol import KvTransport


class RemoteOwner(RegionProcess):
    """Another process with a region that others write to."""

    def __init__(
        self,
        backend: str,
        num_bytes: int,
        *,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        stall_timeout_s: float = 10.0,
    ):
        super().__init__(
            __name__,
            backend,
            num_bytes,
            prefix=prefix,
            host=host,
            port=port,
            stall_timeout_s=stall_timeout_s,
        )
        self.descriptor = msgspec.json.decode(self.read_line(), type=RegionDescriptor)

    @contextlib.contextmanager
    def region(self) -> Iterator[memoryview]:
        """The bytes of its region, as they are, writable."""
        fd = os.open(f"/proc/{self.process.pid}/fd/{self.ask('fd')}", os.O_RDWR)
        try:
            with mmap.mmap(fd, self.descriptor.num_bytes) as mapped, memoryview(mapped) as view:
                yield view
        finally:
            os.close(fd)


def answer(transport: KvTransport, segment: SharedSegment, command: str) -> str:
    match command.split():
        case ["open", name, start, end]:
            transport.open_window(name, [(int(start), int(end))])
            return "ok"
        case ["close", name]:
            transport.close_window(name)
            return "ok"
        case ["digest", start, end]:
            return hashlib.sha256(segment.view()[int(start) : int(end)]).hexdigest()
        case ["fence"]:
            return "yes" if transport.can_fence else "no"
        case ["fd"]:
            return str(segment.fd)
        case ["writers"]:
            return " ".join(sorted(transport.live_writers()))
    raise ValueError(f"unknown command {command!r}")


def main() -> None:
    segment, transport = region_of_arguments()
    print(msgspec.json.encode(transport.descriptor).decode(), flush=True)
    for line in sys.stdin:
        print(answer(transport, segment, line), flush=True)


if __name__ == "__main__":
    main()
