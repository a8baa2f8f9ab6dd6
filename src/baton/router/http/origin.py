"""Where a request is sent: what of a URL decides about the connection.

Elsewhere: connections (client.py).
"""

from typing import NamedTuple
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """Where requests are sent. `host` without an IPv6 address's brackets; `host_line` is what the
    Host header says."""

    host: str
    port: int
    is_tls: bool
    host_line: bytes


def origin_of(url: str) -> Origin:
    """Of a URL with scheme and host."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    return Origin(
        parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls, parts.netloc.encode()
    )
