"""Moving KV blocks into a peer's pool: one protocol, several backends."""

from baton.transfer.host import host_id
from baton.transfer.link import LinkConfig, SimulatedLink, parse_link
from baton.transfer.routed import RoutedTransport
from baton.transfer.select import choose_backend
from baton.transfer.shm import ShmTransport
from baton.transfer.tcp import TcpTransport

__all__ = [
    "LinkConfig",
    "RoutedTransport",
    "ShmTransport",
    "SimulatedLink",
    "TcpTransport",
    "choose_backend",
    "host_id",
    "parse_link",
]
