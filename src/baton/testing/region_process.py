"""Another process with a region that answers each line with one line: a side of transport tests.

Elsewhere: what the two kinds do (region_owner.py, region_writer.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from baton.kvcache.storage import SharedSegment
from baton.messages.regions import RegionDescriptor
from baton.transfer.mooncake import MooncakeTransport
from baton.transfer.nixl import NixlTransport
from baton.transfer.protocol import KvTransport
from baton.transfer.registry import open_transport
from baton.transfer.tcp import TcpTransport


def open_region(
    backend: str, segment: SharedSegment, *, host: str, port: int, stall_timeout_s: float
) -> KvTransport:
    """As `open_transport`, with what only some backends have: a port and a stall timeout."""
    match backend:
        case "tcp":
            return TcpTransport(segment, host=host, port=port, stall_timeout_s=stall_timeout_s)
        case "mooncake":
            return MooncakeTransport(segment, host=host, stall_timeout_s=stall_timeout_s)
        case "nixl":
            return NixlTransport(segment, host=host, stall_timeout_s=stall_timeout_s)
        case _:
            return open_transport(backend, segment, host=host)


def port_of(descriptor: RegionDescriptor) -> int:
    """The port that a new process can take over, 0 if the backend's addresses are always new."""
    if descriptor.backend != "tcp":
        return 0
    return int(descriptor.place.rpartition(":")[2])


class RegionProcess:
    """Runs `module` behind `prefix`; a context manager that ends it."""

    def __init__(
        self,
        module: str,
        backend: str,
        num_bytes: int,
        *,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        stall_timeout_s: float = 10.0,
    ):
        arguments = [backend, str(num_bytes), host, str(port), str(stall_timeout_s)]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
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
        return self.read_line()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


def region_of_arguments() -> tuple[SharedSegment, KvTransport]:
    """The process's own side: what its command line asks for."""
    backend, num_bytes, host, port, stall_timeout_s = sys.argv[1:]
    segment = SharedSegment(int(num_bytes))
    transport = open_region(
        backend, segment, host=host, port=int(port), stall_timeout_s=float(stall_timeout_s)
    )
    return segment, transport
