"""Listening, addresses and socket options of the connections that peers make over TCP.

Elsewhere: what is said on them (tcp.py, companion.py).
"""

import socket

from baton.core.errors import ConfigError
from baton.transfer.tcp_frames import FrameError

MAX_CONNECTIONS = 1024
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})


def host_for_peers(host: str, advertised_host: str) -> str:
    """What peers are told to connect to. Raises ConfigError if nobody could."""
    if host in _WILDCARDS and not advertised_host:
        raise ConfigError(
            f"KV host {host!r} is every interface; also give the address that peers reach"
        )
    return advertised_host or host


def receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        chunk = connection.recv(num_bytes - len(received))
        if not chunk:
            raise FrameError("the connection was closed during the greeting")
        received += chunk
    return received


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(f"cannot listen for KV on {host}:{port}: {error}") from error


def parse_address(address: str) -> tuple[str, int, bytes]:
    """Raises ValueError if it is not "host:port/token"."""
    place, _, token = address.rpartition("/")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address {place!r} is not host:port/token")
    return host.strip("[]"), int(port), bytes.fromhex(token)


def tune(connection: socket.socket, stall_timeout_s: float) -> None:
    """Small frames at once, and a vanished host noticed in seconds. Buffer sizes stay the
    kernel's own: setting them would end its automatic tuning."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    timeout_ms = int(stall_timeout_s * 1000)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
