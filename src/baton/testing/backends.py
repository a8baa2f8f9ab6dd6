"""Every KV transport by name, and why one cannot be made here.

Elsewhere: what they must do (transport_conformance.py).
"""

import functools
from collections.abc import Callable

from baton.core.errors import ConfigError
from baton.kvcache.storage import SharedSegment
from baton.transfer import ShmTransport, TcpTransport
from baton.transfer.mooncake import MooncakeTransport
from baton.transfer.nixl import NixlTransport
from baton.transfer.protocol import KvTransport

BACKENDS: dict[str, Callable[[SharedSegment], KvTransport]] = {
    "shm": ShmTransport,
    "tcp": TcpTransport,
    "mooncake": MooncakeTransport,
    "nixl": NixlTransport,
}


@functools.cache
def why_missing(backend: str) -> str:
    """Why the backend cannot be used on this machine, "" if it can.

    A library opens descriptors of its own with its first transport and keeps them for the life of
    the process; after this call they are there.
    """
    segment = SharedSegment(4096)
    try:
        BACKENDS[backend](segment).close()
    except ConfigError as error:
        return str(error)
    finally:
        segment.close()
    return ""
