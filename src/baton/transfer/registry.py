"""Every backend by its name, and how one is opened.

Invariant: a transfer library is loaded when a transport over it is opened, and not before.
Elsewhere: which of them two workers use with each other (select.py).
"""

from collections.abc import Callable
from typing import Final

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.transfer.config import TransferConfig
from baton.transfer.mooncake import MooncakeTransport
from baton.transfer.nixl import NixlTransport
from baton.transfer.protocol import KvTransport
from baton.transfer.shm import ShmTransport
from baton.transfer.tcp import TcpTransport

OpenBackend = Callable[[SharedSegment, str, str, TransferConfig], KvTransport]


def _open_shm(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return ShmTransport(segment, config=config)


def _open_tcp(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return TcpTransport(segment, host=host, advertised_host=advertised_host, config=config)


def _open_mooncake(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return MooncakeTransport(segment, host=host, advertised_host=advertised_host, config=config)


def _open_nixl(
    segment: SharedSegment, host: str, advertised_host: str, config: TransferConfig
) -> KvTransport:
    return NixlTransport(segment, host=host, advertised_host=advertised_host, config=config)


BACKENDS: Final[dict[str, OpenBackend]] = {
    "shm": _open_shm,
    "tcp": _open_tcp,
    "mooncake": _open_mooncake,
    "nixl": _open_nixl,
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


def why_missing(name: str) -> str:
    """Why a backend cannot be opened on this machine, "" if it can; found by opening one.

    A library opens descriptors of its own with its first transport and keeps them for the life of
    the process; after this call they are there.
    """
    segment = SharedSegment(4096)
    try:
        open_transport(name, segment).close()
    except ConfigError as error:
        return str(error)
    finally:
        segment.close()
    return ""
