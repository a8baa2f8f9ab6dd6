"""Every backend by its name, and how one is opened.

Elsewhere: which of them two workers use with each other (select.py).
"""

from collections.abc import Callable
from typing import Final

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.transfer.protocol import KvTransport
from baton.transfer.shm import ShmTransport
from baton.transfer.tcp import TcpTransport


def _open_shm(segment: SharedSegment, host: str, advertised_host: str) -> KvTransport:
    return ShmTransport(segment)


def _open_tcp(segment: SharedSegment, host: str, advertised_host: str) -> KvTransport:
    return TcpTransport(segment, host=host, advertised_host=advertised_host)


BACKENDS: Final[dict[str, Callable[[SharedSegment, str, str], KvTransport]]] = {
    "shm": _open_shm,
    "tcp": _open_tcp,
}


def open_transport(
    name: str, segment: SharedSegment, *, host: str = "127.0.0.1", advertised_host: str = ""
) -> KvTransport:
    """Over `segment`, which must outlive it; network backends listen on `host` and tell peers
    `advertised_host`. Raises ConfigError for a name that is not known, or where what the backend
    needs is not installed."""
    backend = BACKENDS.get(name)
    if backend is None:
        raise ConfigError(f"KV backend {name!r} is not known; try one of {', '.join(BACKENDS)}")
    return backend(segment, host, advertised_host)
