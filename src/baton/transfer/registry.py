"""Every backend by its name, and how one is opened.

Elsewhere: which of them two workers use with each other (select.py).
"""

from collections.abc import Callable
from typing import Final

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.transfer.config import TransferConfig
from baton.transfer.protocol import KvTransport
from baton.transfer.shm import ShmTransport
from baton.transfer.tcp import TcpTransport


def _open_shm(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return ShmTransport(segment, config=config)


def _open_tcp(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return TcpTransport(segment, host=host, advertised_host=advertised_host, config=config)


OpenBackend = Callable[[SharedSegment, str, str, TransferConfig], KvTransport]
BACKENDS: Final[dict[str, OpenBackend]] = {
    "shm": _open_shm,
    "tcp": _open_tcp,
}


def open_transport(
    name: str,
    segment: SharedSegment,
    *,
    host: str = "127.0.0.1",
    advertised_host: str = "",
    config: TransferConfig | None = None,
) -> KvTransport:
    """Over `segment`, which must outlive it; network backends listen on `host` and tell peers
    `advertised_host`; `config` says on how many threads. Raises ConfigError for a name that is not
    known, or where what the backend needs is not installed."""
    backend = BACKENDS.get(name)
    if backend is None:
        raise ConfigError(f"KV backend {name!r} is not known; try one of {', '.join(BACKENDS)}")
    return backend(segment, host, advertised_host, config or TransferConfig())
