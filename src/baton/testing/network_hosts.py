"""Hosts of their own on one machine: Linux network namespaces, joined by a cable that can be cut.

Invariant: nothing is reachable but the other host of the pair, the names are this process's own,
and whatever was made is gone when `two_hosts` ends.
Elsewhere: processes to run on them (processes.py, by `Server.prefix`).
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class NetworkHost:
    """`name` is the namespace's, `interface` its end of the cable."""

    name: str
    address: str
    interface: str

    @property
    def prefix(self) -> list[str]:
        """In front of a command that shall run on this host."""
        return ["ip", "netns", "exec", self.name]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the threads and processes that it starts meanwhile, are on the host."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def cut(self) -> None:
        """Pull the cable: whatever is sent is lost, and no connection is told."""
        _ip("-n", self.name, "link", "set", self.interface, "down")

    def mend(self) -> None:
        _ip("-n", self.name, "link", "set", self.interface, "up")

    def sent_bytes(self, interface: str) -> int:
        with self.entered():
            statistics = Path("/proc/thread-self/net/dev").read_text().splitlines()
        by_name = dict(line.split(":", 1) for line in statistics if ":" in line)
        fields = {name.strip(): values.split() for name, values in by_name.items()}
        return int(fields[interface][8])


def why_no_hosts() -> str | None:
    """Why `two_hosts` cannot work here, None if it can."""
    if shutil.which("ip") is None:
        return "network namespaces need the `ip` command (package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces can be made by root only"
    return None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[NetworkHost, NetworkHost]]:
    """Two hosts, joined; neither has a default route."""
    prefix = f"bt{os.getpid()}"
    first = NetworkHost(f"{prefix}-a", "10.77.1.1", f"{prefix}a")
    second = NetworkHost(f"{prefix}-b", "10.77.1.2", f"{prefix}b")
    with contextlib.ExitStack() as stack:
        for host in (first, second):
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
        _ip(
            *("link", "add", first.interface, "netns", first.name, "type", "veth"),
            *("peer", "name", second.interface, "netns", second.name),
        )
        # A namespace lives on while a process is in it, so the cable is taken out by itself.
        stack.callback(_ip, "-n", first.name, "link", "delete", first.interface)
        for host in (first, second):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield first, second


def _enter(namespace_fd: int) -> None:
    if _libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _ip(*arguments: str) -> None:
    """Raises RuntimeError with what `ip` said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
