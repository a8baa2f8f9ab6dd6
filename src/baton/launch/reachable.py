"""Which address of this host its peers are told.

Elsewhere: listening on it (transfer/tcp.py), telling it (messages/regions.py).
"""

import ipaddress
import socket
from collections.abc import Iterable

import psutil

_WILDCARDS = ("0.0.0.0", "::")


def reachable_address(host: str) -> str:
    """`host` itself; of a wildcard the address that the default route leaves from, without such a
    route the first one that other hosts could reach, and on a host without any the loopback."""
    if host not in _WILDCARDS:
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (
        _where_the_default_route_leaves(family)
        or first_reachable(_addresses(family))
        or ("::1" if family is socket.AF_INET6 else "127.0.0.1")
    )


def first_reachable(addresses: Iterable[str]) -> str | None:
    """Loopback and link-local addresses mean something else, or nothing, on another host."""
    for address in addresses:
        parsed = ipaddress.ip_address(address)
        if not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified):
            return address
    return None


def _where_the_default_route_leaves(family: socket.AddressFamily) -> str | None:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only picks the local address.
            probe.connect(("2001:db8::1" if family is socket.AF_INET6 else "192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _addresses(family: socket.AddressFamily) -> list[str]:
    """In the system's order, but those of interfaces that carry something now come first."""
    stats = psutil.net_if_stats()
    found = [
        (entry.address.partition("%")[0], name in stats and stats[name].isup)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family is family
    ]
    return [address for address, _ in sorted(found, key=lambda each: not each[1])]
